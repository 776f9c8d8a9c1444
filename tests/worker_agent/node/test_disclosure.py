"""Nothing of a node's rows, names of columns, labels, paths or messages is in anything that its agent sends.

A canary stands in every cell, column name, path and exception; all that reaches the coordinator is searched for it.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from federated.failures import SENTENCES, FailureFacts, sentence
from federated.protocol import DeclineRequest, FailRequest
from federated.trainable import Lora
from tests.support.algorithms import installed
from tests.support.algorithms.breaking.exceptions import CANARY, by_name
from tests.support.logged import logged
from tests.support.training import first_instruction, work_of
from tests.worker_agent.canaries import WORK, assert_no_canary, data_sets, ended, models
from tests.worker_agent.leases import make_lease
from tests.worker_agent.recording_coordinator import RecordingCoordinator
from tests.worker_agent.running_agent import digest_of, running, wait_until
from worker_agent.coordinator_api.connection import open_http
from worker_agent.coordinator_api.identity import Identity
from worker_agent.node.disclosure import whereabouts
from worker_agent.settings import AgentSettings, PolicySettings
from worker_agent.training.session import open_session

CHILD = "tests.worker_agent.breaking_child"
STAGES = {"make": "train", "apply": "evaluate", "run": "train"}
"""Where an algorithm can break at a node -> the job in which it does."""

BREAKS = [(name, stage) for stage in STAGES for name in by_name() if name != "a full disk"] + [("a full disk", "run")]
"""All errors at all stages. A node rests after its disk was full: that one comes last."""


@pytest.fixture
def node(settings: AgentSettings, tmp_path: Path) -> AgentSettings:
    (tmp_path / CANARY).mkdir()
    home = tmp_path / CANARY
    wanted = settings.model_dump() | {
        "datasets": data_sets(home / "data"),
        "models": {name: str(path) for name, path in models(home).items()},
        "jobs_per_executor": 100_000,
    }
    return AgentSettings.model_validate(wanted)


@pytest.fixture
def at_work(
    node: AgentSettings, identity: Identity, coordinator: RecordingCoordinator
) -> Iterator[RecordingCoordinator]:
    """A coordinator with an agent of this node at work for it; the offers are taken in their order."""
    with installed(), open_http(node, coordinator.url) as http, running(node, identity, http, CHILD):
        yield coordinator


def offer(coordinator: RecordingCoordinator, number: int, work: Mapping[str, Any], **fields: Any) -> None:
    lease = make_lease(job_id=f"job_{number}", **fields)
    shown = lease.model_dump(mode="json")
    coordinator.offers.append(shown | {"work": shown["work"] | dict(work)})


class TestAnAgent:
    def test_tells_nothing_of_an_exception_of_any_type_at_any_stage(
        self, at_work: RecordingCoordinator, node: AgentSettings
    ) -> None:
        facts = open_session(work_of("bert", Lora(r=2)), "good", node, 0, {}).facts
        content = first_instruction(work_of("bert", Lora(r=2)), facts).encode()
        at_work.artifacts[digest_of(content)] = content
        instruction = {"digest": digest_of(content), "size_bytes": len(content)}
        for number, (name, stage) in enumerate(BREAKS):
            work = WORK | {"algorithm": "breaking", "config": {"error": name, "stage": stage}}
            offer(at_work, number, work, kind=STAGES[stage], dataset="good", instruction=instruction)
        wait_until(lambda: len(ended(at_work)) == len(BREAKS), 270)
        assert_no_canary(at_work)
        told = [ended(at_work)[f"job_{number}"] for number in range(len(BREAKS))]
        assert {one["code"] for one in told} <= set(SENTENCES) | {"job_declined"}
        places = {one["facts"]["place"].partition(":")[0] for one in told if one["code"] == "training_failed"}
        assert places == {"federated.algorithms.breaking.client"}
        for name in ("builtins.ValueError", "a type named after a value"):
            assert told[BREAKS.index((name, "run"))]["facts"]["error"] == "ValueError"

    def test_tells_nothing_of_data_and_models_that_do_not_fit(
        self, at_work: RecordingCoordinator, node: AgentSettings
    ) -> None:
        causal = {"task": {"task": "causal_lm", "template": {"prompt": "{text}", "response": "{patient}"}}}
        jobs: list[tuple[str, Mapping[str, Any]]] = [(name, {}) for name in node.datasets]
        jobs += [("good", {"base_model": {"id": name}}) for name in node.models if name != "bert"]
        jobs += [
            ("good", causal),
            ("good", {"base_model": {"id": "bert", "weights_sha256": "0" * 64}}),
            ("good", {"trainable": {"kind": "lora", "target_modules": ["nowhere"]}}),
            ("good", {"task": {**WORK["task"], "cloze": {"template": "{text} {mask}", "words": ["xq", "zq", "wq"]}}}),
            ("good", {"config": {"nonsense": 1}}),
        ]
        for number, (name, work) in enumerate(jobs):
            offer(at_work, number, WORK | work, kind="describe", round_kind=None, round_number=None, dataset=name)
        wait_until(lambda: len(ended(at_work)) == len(jobs))
        assert_no_canary(at_work)
        told = ended(at_work)
        codes = {jobs[number][0]: told[f"job_{number}"].get("code") for number in range(len(node.datasets))}
        assert codes.pop("good") is None
        assert set(codes.values()) <= set(SENTENCES)
        assert (codes["few"], codes["unlisted"]) == ("data_too_few", "policy_column")
        assert (codes["nested"], codes["ragged-csv"]) == ("data_column_type", "data_column_missing")
        assert {codes[name] for name in ("wide-csv", "doubled-csv", "quoted-csv", "doubled-key")} == {"data_missing"}
        labels = told[f"job_{list(node.datasets).index('other-labels')}"]["facts"]
        assert (labels["dataset"], labels["column"], labels["count"], labels["of"]) == (
            "other-labels",
            "label",
            50,
            50,
        )

    def test_keeps_the_whole_text_in_its_own_log_under_the_reference(self, at_work: RecordingCoordinator) -> None:
        with logged() as lines:
            offer(at_work, 1, WORK, kind="describe", round_kind=None, dataset="other-labels")
            wait_until(lambda: len(ended(at_work)) == 1)
            reference = ended(at_work)["job_1"]["facts"]["reference"]
            (line,) = [line for line in lines() if line.get("reference") == reference]
        assert line["event"] == "job_declined"
        assert f"label '{CANARY} label' is not one of" in line["reason"]


class TestWhereabouts:
    def test_of_every_exception_hold_nothing_of_its_text(self) -> None:
        errors = [make() for make in by_name().values()]
        assert len(errors) > 100
        assert all(CANARY in str(error) for error in errors)
        assert not [error for error in errors if CANARY.lower() in whereabouts(error).model_dump_json().lower()]


class TestTheProtocol:
    @pytest.mark.parametrize("request_type", [FailRequest, DeclineRequest])
    def test_has_no_field_for_a_text_of_the_node(self, request_type: type[FailRequest | DeclineRequest]) -> None:
        body = {"boot_id": "0" * 8, "code": "data_empty", "transient": True, "detail": CANARY}
        if request_type is DeclineRequest:
            del body["transient"]
        assert CANARY not in request_type.model_validate(body).sentence

    def test_knows_every_code_with_which_an_agent_refuses(self) -> None:
        raised = {
            "DataError",
            "ModelError",
            "EffortError",
            "JobRefused",
            "JobDeclined",
            "Refusal",
            "Failed",
            "_failed",
        }
        sources = [path for package in ("worker_agent", "federated") for path in Path(package).rglob("*.py")]
        calls = [
            node for path in sources for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ]
        codes = {
            call.args[0].value
            for call in calls
            if getattr(call.func, "id", None) in raised and call.args and isinstance(call.args[0], ast.Constant)
        }
        assert len(codes) > 20
        assert codes - {"not_personal"} <= set(SENTENCES)

    def test_a_sentence_is_made_for_every_code_and_every_fact(self) -> None:
        facts = FailureFacts(dataset="notes", column="label", count=3, of=40, reference="9f3c01de")
        assert sentence("data_unknown_label", facts) == (
            "Rows have a label that is not in the federation's list "
            "(data set 'notes', column 'label', 3 of 40 rows). The node's log has the full text under 9f3c01de."
        )
        for code in [*SENTENCES, "anything_else"]:
            assert sentence(code).endswith(".")


def test_limits_are_told_as_numbers() -> None:
    facts = FailureFacts(asked=16, allowed=8)
    assert "(asked for 16, the node's limit is 8)" in sentence("policy_rank", facts)
    assert PolicySettings().min_examples == 32
