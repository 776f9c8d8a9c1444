"""The owner's limits that need the data or the clock, on both sides of each limit, in the real training process."""

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from federated import registry
from federated.protocol import Lease
from federated.trainable import Lora, Prefix
from tests.support.tiny_models import bert_folder, color_rows, write_rows
from tests.support.training import COLORS, first_instruction, work_of
from tests.worker_agent.leases import make_lease
from worker_agent.doctor import examine
from worker_agent.runtime.executor import Executor, Failed, Finished, Outcome, Task
from worker_agent.settings import MIN_EXAMPLES, MIN_HELD_OUT, AgentSettings, DatasetSettings, PolicySettings
from worker_agent.training.data import load_split
from worker_agent.training.job_errors import EffortError
from worker_agent.training.limits import check_effort
from worker_agent.training.session import open_session

WORK = work_of("bert", Lora(r=2), config={"local_steps": 4, "batch_size": 8})


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> AgentSettings:
    """A node with the usual policy; a data set `rows-N` has N rows, `tested-N` N rows to train on and 10 held out."""
    folder = tmp_path_factory.mktemp("node")
    held_out = write_rows(folder / "held-out.jsonl", color_rows(MIN_HELD_OUT, seed=9))
    datasets = {}
    for rows in (31, 32, 41, 42, 60):
        path = write_rows(folder / f"{rows}.jsonl", color_rows(rows))
        datasets[f"rows-{rows}"] = DatasetSettings(path=path)
        datasets[f"tested-{rows}"] = DatasetSettings(path=path, test_path=held_out)
    rare = [{"text": "red", "label": "red"}] * 40 + [{"text": "blue", "label": "blue"}]
    path = write_rows(folder / "rare.jsonl", rare)
    datasets["rare-label"] = DatasetSettings(path=path, test_path=held_out)
    models = {"bert": str(bert_folder(folder / "bert"))}
    # Named, so that no settings file of another test comes in.
    return AgentSettings(
        models=models, datasets=datasets, policy=PolicySettings().model_dump(), device="cpu", cancel_seconds=5
    )


@pytest.fixture(scope="module")
def executor(node: AgentSettings) -> Iterator[Executor]:
    warm = Executor(node)
    yield warm
    warm.close()


def do(
    executor: Executor,
    node: AgentSettings,
    folder: Path,
    dataset: str,
    other: Mapping[str, Any] | None = None,
    **lease: Any,
) -> Outcome:
    """`other`: fields of the work that are not the usual ones."""
    work = WORK.model_copy(update={"config": {**WORK.config, **lease.pop("config", {})}} | dict(other or {}))
    folder.mkdir(exist_ok=True)
    instruction = folder / "instruction.safetensors"
    first_instruction(work, open_session(work, dataset, node, 0, {}).facts).write(instruction)
    task = Task(make_lease(work=work.model_dump(mode="json"), dataset=dataset, **lease), instruction, None, folder)
    return executor.run(task, lambda: False, lambda _: None)


class TestExamples:
    @pytest.mark.parametrize("kind", ["describe", "train", "evaluate"])
    def test_below_the_fewest_nothing_leaves(
        self, executor: Executor, node: AgentSettings, tmp_path: Path, kind: str
    ) -> None:
        few = do(executor, node, tmp_path / "few", "tested-31", kind=kind)
        assert isinstance(few, Failed)
        assert (few.code, few.declined, few.facts.count, few.facts.allowed) == (
            "data_too_few",
            True,
            31,
            MIN_EXAMPLES,
        )
        assert isinstance(do(executor, node, tmp_path / "enough", "tested-32", kind=kind), Finished)

    @pytest.mark.parametrize(
        ("config", "enough"),
        [
            ({"local_steps": 4, "batch_size": 8}, True),
            ({"local_steps": 31, "batch_size": 1}, False),
            ({"local_steps": 1, "batch_size": 1}, False),
            ({"local_steps": None, "local_epochs": 0.1}, False),
            ({"local_steps": None, "local_epochs": 1.0}, True),
        ],
    )
    def test_an_update_that_fewer_examples_made_stays(
        self, executor: Executor, node: AgentSettings, tmp_path: Path, config: dict[str, Any], enough: bool
    ) -> None:
        for kind in ("describe", "train"):
            outcome = do(executor, node, tmp_path / kind, "rows-60", config=config, kind=kind, round_kind=None)
            assert isinstance(outcome, Finished) == enough
            assert enough or (isinstance(outcome, Failed) and outcome.code == "policy_few_examples")

    @pytest.mark.parametrize("round_kind", [None, "prepare", "train"])
    def test_a_lease_cannot_say_that_its_update_is_something_else(
        self, executor: Executor, node: AgentSettings, tmp_path: Path, round_kind: str | None
    ) -> None:
        revision = registry.algorithm("fedpeptao").revision
        config = {"layer_count": "spectrum", "warmup_rounds": 1, "local_steps": 1, "batch_size": 1}
        for name, enough in (("few", False), ("enough", True)):
            told = {
                "algorithm": "fedpeptao",
                "algorithm_revision": revision,
                "trainable": Prefix(num_virtual_tokens=2),
                "config": config | ({"local_steps": 4, "batch_size": 8} if enough else {}),
            }
            outcome = do(executor, node, tmp_path / name, "rows-60", told, kind="train", round_kind=round_kind)
            assert isinstance(outcome, Finished) == enough
            assert enough or (isinstance(outcome, Failed) and outcome.code == "policy_few_examples")

    @pytest.mark.parametrize(("dataset", "told"), [("rows-41", 0), ("rows-42", 10), ("rows-60", 10)])
    def test_metrics_of_too_few_held_out_examples_are_not_told(
        self, executor: Executor, node: AgentSettings, tmp_path: Path, dataset: str, told: int
    ) -> None:
        described = do(executor, node, tmp_path / "describe", dataset, kind="describe")
        evaluated = do(executor, node, tmp_path / "evaluate", dataset, kind="evaluate", views=("shared", "own"))
        assert isinstance(described, Finished)
        assert isinstance(evaluated, Finished)
        assert described.submission.description is not None
        assert described.submission.description.evaluation_examples == told
        for metrics in (evaluated.submission.evaluation or {}).values():
            assert metrics["examples"] == told
            assert ("accuracy" in metrics) == (told > 0)

    def test_a_label_of_too_few_examples_is_not_told(
        self, executor: Executor, node: AgentSettings, tmp_path: Path
    ) -> None:
        rare = do(executor, node, tmp_path / "rare", "rare-label", kind="describe")
        assert isinstance(rare, Finished)
        assert rare.submission.description is not None
        assert rare.submission.description.labels == ("red",)

    @pytest.mark.parametrize(("rows", "held_out"), [(31, 3), (41, 4), (42, 10), (60, 10)])
    def test_ten_are_held_out_where_enough_are_left(self, node: AgentSettings, rows: int, held_out: int) -> None:
        split = load_split(node, f"rows-{rows}")
        assert (split.train.rows, split.held_out.rows) == (rows - held_out, held_out)

    def test_the_doctor_says_where_there_are_too_few(self, node: AgentSettings) -> None:
        found = {finding.step: finding for finding in examine(node)}
        assert (found["data rows-31"].well, "min_examples = 32" in found["data rows-31"].text) == (False, True)
        assert (found["data rows-41"].well, "min_held_out = 10" in found["data rows-41"].text) == (True, True)
        assert found["data rows-42"].text == "32 rows to train on, 10 held out"


class TestTime:
    def test_a_job_of_any_kind_ends_when_the_owners_time_is_up(
        self, executor: Executor, node: AgentSettings, tmp_path: Path
    ) -> None:
        do(executor, node, tmp_path / "warm", "rows-60")
        work = WORK.model_copy(update={"config": {"local_steps": 1_000_000}})
        task = Task(
            make_lease(work=work.model_dump(mode="json"), dataset="rows-60"),
            tmp_path / "warm" / "instruction.safetensors",
            None,
            tmp_path / "warm",
        )
        until = time.monotonic() + 1.0
        outcome = executor.run(task, threading.Event().is_set, lambda _: None, until)
        assert isinstance(outcome, Failed)
        assert (outcome.code, outcome.declined, outcome.transient) == ("policy_seconds", True, False)
        assert time.monotonic() > until


def lease_of(algorithm: str, kind: str, config: dict[str, Any]) -> Lease:
    revision = registry.algorithm(algorithm).revision
    work = WORK.model_dump(mode="json") | {"algorithm": algorithm, "algorithm_revision": revision, "config": config}
    round_kind = None if kind == "describe" else "prepare" if kind == "prepare" else "train"
    wanted = "train" if kind == "prepare" else kind
    return make_lease(work=work | {"task": COLORS.model_dump(mode="json")}, kind=wanted, round_kind=round_kind)


class TestEffort:
    """No job of any kind of any algorithm is taken that may do more than the owner allows."""

    @pytest.mark.parametrize("algorithm", sorted(registry.algorithms()))
    @pytest.mark.parametrize("kind", ["describe", "prepare", "train"])
    def test_is_bounded_for_every_kind_of_every_algorithm(self, algorithm: str, kind: str) -> None:
        lease = lease_of(algorithm, kind, {"local_steps": 20})
        check_effort(lease, 40, PolicySettings(max_local_steps=1000))
        config = registry.make_config(algorithm, {"local_steps": 20})
        # Whatever a lease calls its round: that is not for the coordinator to say.
        efforts = [config.most_effort("prepare", 40), config.most_effort("train", 40)]
        most = max(effort.steps for effort in efforts if effort is not None)
        check_effort(lease, 40, PolicySettings(max_local_steps=most))
        with pytest.raises(EffortError, match="policy_steps"):
            check_effort(lease, 40, PolicySettings(max_local_steps=most - 1))

    @pytest.mark.parametrize(
        ("algorithm", "config", "code"),
        [
            ("fedavg", {"local_epochs": 1000.0}, "policy_steps"),
            ("fedavg", {"local_steps": 20, "batch_size": 4096}, "policy_passes"),
            ("fedkseed", {"local_steps": 65_536}, "policy_steps"),
            ("fedkseed", {"local_steps": 20, "batch_size": 4096}, "policy_passes"),
            ("fibecfed", {"local_steps": 20, "preparation_steps": 10_000}, "policy_steps"),
            ("fibecfed", {"local_steps": 20, "fisher_epochs": 100}, "policy_steps"),
            ("fibecfed", {"local_steps": 20, "fisher_epochs": 0.1, "lanczos_steps": 500}, "policy_passes"),
        ],
    )
    def test_a_description_is_refused_for_what_would_follow(
        self, algorithm: str, config: dict[str, Any], code: str
    ) -> None:
        with pytest.raises(EffortError, match=code):
            check_effort(lease_of(algorithm, "describe", config), 40, PolicySettings(max_local_steps=50))
        check_effort(lease_of(algorithm, "describe", config), 40, PolicySettings())

    def test_an_evaluation_counts_its_views(self) -> None:
        lease = lease_of("fedavg", "evaluate", {}).model_copy(update={"views": ("shared", "own")})
        check_effort(lease, 40, PolicySettings(max_passes=2))
        with pytest.raises(EffortError, match="policy_passes"):
            check_effort(lease, 40, PolicySettings(max_passes=1))

    @pytest.mark.parametrize("kind", ["describe", "evaluate"])
    def test_an_evaluation_counts_the_words_that_each_example_is_read_with(self, kind: str) -> None:
        lease = lease_of("fedavg", kind, {})
        check_effort(lease, 40, PolicySettings(max_passes=12), words=12)
        with pytest.raises(EffortError, match="policy_passes"):
            check_effort(lease, 40, PolicySettings(max_passes=11), words=12)

    def test_what_cannot_be_bounded_is_refused_where_there_is_a_bound(self) -> None:
        lease = lease_of("fedavg", "train", {}).model_copy()
        unknown = lease.model_copy(update={"work": lease.work.model_copy(update={"algorithm": "unheard-of"})})
        check_effort(unknown, 40, PolicySettings())
        with pytest.raises(EffortError, match="policy_unbounded"):
            check_effort(unknown, 40, PolicySettings(max_local_steps=1))
