"""The child of an executor as a real process: every kind of job, every refusal, and the same bytes warm or fresh."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from federated.payloads.payload import Payload
from federated.protocol import JobProgress, TaskDefinition, Work
from federated.trainable import Lora, Prefix
from tests.support.tiny_models import write_rows
from tests.support.training import REPEAT, first_instruction, make_node, work_of
from tests.worker_agent.leases import make_lease
from worker_agent.runtime.executor import Executor, Failed, Finished, Interrupted, Outcome, Task
from worker_agent.settings import AgentSettings, DatasetSettings
from worker_agent.training.session import open_session

CONFIG = {"local_steps": 3, "batch_size": 4, "learning_rate": 0.02}
EXPLODING = {"local_steps": 60, "optimizer": "sgd", "learning_rate": 100, "weight_decay": 1, "max_grad_norm": None}
CLASSIFY = work_of("bert-without-pooler", Lora(r=2, lora_dropout=0.1), config=CONFIG)
WRITE = work_of("llama", Prefix(num_virtual_tokens=3), task=REPEAT, config=CONFIG)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> AgentSettings:
    folder = tmp_path_factory.mktemp("node")
    settings = make_node(folder)
    bad = {
        "unlabeled": [{"text": "a cat"}],
        "other-labels": [{"text": "a cat", "label": "black"}],
        "empty": [],
    }
    paths = {name: DatasetSettings(path=write_rows(folder / f"{name}.jsonl", rows)) for name, rows in bad.items()}
    return settings.model_copy(update={"datasets": settings.datasets | paths})


@pytest.fixture(scope="module")
def warm(node: AgentSettings) -> Iterator[Executor]:
    executor = Executor(node)
    yield executor
    executor.close()


class Job:
    """A job's files in a folder, run by an executor."""

    def __init__(self, folder: Path, node: AgentSettings, work: Work, dataset: str, **lease: Any) -> None:
        folder.mkdir()
        instruction = folder / "instruction.safetensors"
        facts = open_session(work, "instructions" if work.task.task == "causal_lm" else "colors", node, 0, {}).facts
        first_instruction(work, facts).write(instruction)
        self.folder = folder
        self.task = Task(
            lease=make_lease(work=work.model_dump(mode="json"), dataset=dataset, **lease),
            instruction=instruction,
            memory=None,
            folder=folder,
        )

    def run(
        self,
        executor: Executor,
        cancelled: Callable[[], bool] = lambda: False,
        progress: Callable[[JobProgress], None] = lambda _: None,
    ) -> Outcome:
        return executor.run(self.task, cancelled, progress)

    def update_bytes(self, executor: Executor) -> bytes:
        outcome = self.run(executor)
        assert isinstance(outcome, Finished), outcome
        return (self.folder / "update.safetensors").read_bytes()


def in_a_fresh_process(job: Job, node: AgentSettings) -> bytes:
    executor = Executor(node)
    try:
        return job.update_bytes(executor)
    finally:
        executor.close()


def outcome_of(warm: Executor, folder: Path, node: AgentSettings, work: Work, dataset: str, **lease: Any) -> Outcome:
    return Job(folder / "job", node, work, dataset, **lease).run(warm)


class TestJobs:
    def test_a_description_tells_the_model_the_examples_and_the_labels(
        self, warm: Executor, node: AgentSettings, tmp_path: Path
    ) -> None:
        outcome = outcome_of(warm, tmp_path, node, CLASSIFY, "colors", kind="describe")
        assert isinstance(outcome, Finished)
        description = outcome.submission.description
        assert description is not None
        assert description.model == open_session(CLASSIFY, "colors", node, 0, {}).facts
        assert (description.examples, description.evaluation_examples) == (36, 4)
        assert description.labels == ("red", "green", "blue")

    def test_training_leaves_an_update_that_the_submission_describes(
        self, warm: Executor, node: AgentSettings, tmp_path: Path
    ) -> None:
        told: list[JobProgress] = []
        job = Job(tmp_path / "job", node, CLASSIFY, "colors")
        outcome = job.run(warm, progress=told.append)
        assert isinstance(outcome, Finished)
        submission = outcome.submission
        assert submission.update is not None
        data = (job.folder / "update.safetensors").read_bytes()
        assert submission.update.digest == "sha256:" + hashlib.sha256(data).hexdigest()
        assert (submission.update.examples, submission.update.weight) == (36, 36.0)
        update = Payload.decode(data)
        assert sum(float(update[name].abs().sum()) for name in update) > 0
        assert submission.metrics["steps"] == 3
        assert set(submission.seconds) == {"load", "training", "total"}
        assert submission.not_reproducible == ()
        assert {"torch", "peft", "transformers", "python", "cpu", "threads"} <= set(submission.environment)
        assert (told[-1].done, told[-1].total) == (3, 3)

    def test_evaluation_answers_each_view(self, warm: Executor, node: AgentSettings, tmp_path: Path) -> None:
        outcome = outcome_of(warm, tmp_path, node, CLASSIFY, "colors", kind="evaluate", views=("shared", "own"))
        assert isinstance(outcome, Finished)
        found = outcome.submission.evaluation
        assert found is not None
        assert found["shared"] == found["own"]
        assert found["shared"]["examples"] == 4

    def test_warm_and_fresh_processes_make_the_same_bytes(
        self, warm: Executor, node: AgentSettings, tmp_path: Path
    ) -> None:
        first = Job(tmp_path / "a", node, CLASSIFY, "colors", seed=5)
        other = Job(tmp_path / "b", node, WRITE, "instructions", seed=6)
        made = [job.update_bytes(warm) for job in (first, other, first)]
        assert made[0] == made[2] != made[1]
        with ThreadPoolExecutor(2) as threads:
            fresh = list(threads.map(lambda job: in_a_fresh_process(job, node), (first, other)))
        assert fresh == made[:2]

    def test_a_cancelled_job_is_left_and_the_next_one_runs(
        self, warm: Executor, node: AgentSettings, tmp_path: Path
    ) -> None:
        long = CLASSIFY.model_copy(update={"config": {**CONFIG, "local_steps": 1_000_000}})
        told: list[JobProgress] = []
        job = Job(tmp_path / "long", node, long, "colors")
        pid = warm.pid
        assert isinstance(job.run(warm, cancelled=lambda: bool(told), progress=told.append), Interrupted)
        assert isinstance(outcome_of(warm, tmp_path, node, CLASSIFY, "colors"), Finished)
        assert warm.pid == pid


class TestRefusals:
    @pytest.mark.parametrize(
        ("dataset", "code", "detail"),
        [
            ("nowhere", "data_missing", "no data set 'nowhere'"),
            ("unlabeled", "data_column_missing", "no column 'label'"),
            ("other-labels", "data_unknown_label", "line 1: label 'black'"),
            ("empty", "data_empty", "empty has no rows"),
        ],
    )
    def test_data_that_does_not_fit_is_declined(
        self, warm: Executor, node: AgentSettings, tmp_path: Path, dataset: str, code: str, detail: str
    ) -> None:
        outcome = outcome_of(warm, tmp_path, node, CLASSIFY, dataset)
        assert isinstance(outcome, Failed)
        assert (outcome.code, outcome.transient, outcome.declined) == (code, False, True)
        assert detail in outcome.detail

    @pytest.mark.parametrize(
        ("base_model", "code"),
        [({"id": "nowhere"}, "model_missing"), ({"id": "bert", "weights_sha256": "0" * 64}, "model_mismatch")],
    )
    def test_a_model_that_is_not_the_federations_is_declined(
        self, warm: Executor, node: AgentSettings, tmp_path: Path, base_model: dict[str, str], code: str
    ) -> None:
        job = Job(tmp_path / "job", node, CLASSIFY, "colors")
        work = CLASSIFY.model_dump(mode="json") | {"base_model": base_model}
        task = Task(make_lease(work=work, dataset="colors"), job.task.instruction, None, job.folder)
        outcome = warm.run(task, lambda: False, lambda _: None)
        assert isinstance(outcome, Failed)
        assert (outcome.code, outcome.transient, outcome.declined) == (code, False, True)

    @pytest.mark.parametrize(
        ("work", "code"),
        [
            ({"algorithm": "fedmagic"}, "algorithm_missing"),
            ({"algorithm_revision": 99}, "algorithm_missing"),
            ({"config": {"local_stepz": 3}}, "instruction_invalid"),
            ({"config": EXPLODING}, "training_diverged"),
        ],
    )
    def test_work_that_cannot_be_done_fails_for_good(
        self, warm: Executor, node: AgentSettings, tmp_path: Path, work: dict[str, Any], code: str
    ) -> None:
        job = Job(tmp_path / "job", node, CLASSIFY, "colors")
        lease = make_lease(work=CLASSIFY.model_dump(mode="json") | work, dataset="colors")
        outcome = warm.run(Task(lease, job.task.instruction, None, job.folder), lambda: False, lambda _: None)
        assert isinstance(outcome, Failed)
        assert (outcome.code, outcome.transient, outcome.declined) == (code, False, False)

    @pytest.mark.parametrize("content", [None, b"", b"not safetensors"])
    def test_an_instruction_that_cannot_be_read_is_invalid(
        self, warm: Executor, node: AgentSettings, tmp_path: Path, content: bytes | None
    ) -> None:
        job = Job(tmp_path / "job", node, CLASSIFY, "colors")
        assert job.task.instruction is not None
        if content is not None:
            job.task.instruction.write_bytes(content)
        path = None if content is None else job.task.instruction
        outcome = warm.run(Task(job.task.lease, path, None, job.folder), lambda: False, lambda _: None)
        assert isinstance(outcome, Failed)
        assert (outcome.code, outcome.transient) == ("instruction_invalid", False)

    def test_an_instruction_for_another_model_fails_and_names_the_tensor(
        self, warm: Executor, node: AgentSettings, tmp_path: Path
    ) -> None:
        job = Job(tmp_path / "job", node, CLASSIFY, "colors")
        assert job.task.instruction is not None
        right = Payload.open(job.task.instruction)
        Payload({**right, "nowhere": torch.zeros(2)}, right.facts).write(tmp_path / "wrong.safetensors")
        outcome = warm.run(
            Task(job.task.lease, tmp_path / "wrong.safetensors", None, job.folder), lambda: False, lambda _: None
        )
        assert isinstance(outcome, Failed)
        assert (outcome.code, outcome.transient) == ("training_failed", True)
        assert "nowhere" in outcome.detail

    def test_a_task_of_other_labels_is_declined_with_the_label(
        self, warm: Executor, node: AgentSettings, tmp_path: Path
    ) -> None:
        task = TaskDefinition(task="sequence_classification", labels=("red", "green"))
        work = CLASSIFY.model_copy(update={"task": task})
        job = Job(tmp_path / "job", node, CLASSIFY, "colors")
        lease = make_lease(work=work.model_dump(mode="json"), dataset="colors")
        outcome = warm.run(Task(lease, job.task.instruction, None, job.folder), lambda: False, lambda _: None)
        assert isinstance(outcome, Failed)
        assert "label 'blue' is not one of: red, green" in outcome.detail
