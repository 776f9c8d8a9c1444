"""Disclosure of failures in the coordinator: tenants read a step, a type of error and a reference, never its text."""

import json
from collections.abc import Iterator

import pytest
import torch

from federated.payloads.payload import Payload
from federated.protocol import Capabilities, DatasetFacts
from tests.support.algorithms import installed
from tests.support.algorithms.breaking.exceptions import CANARY
from tests.support.logged import logged
from tests.support.stage import DATASET, Actor, Stage

CAPABILITIES = Capabilities(algorithms={"breaking": 1}, datasets=(DatasetFacts(name=DATASET),))
STAGES = ("start", "plan", "check", "aggregate", "export")
ERRORS = (
    "builtins.ValueError",
    "no memory",
    "with a cause",
    "a value that is no number",
    "a type named after a value",
)


@pytest.fixture(autouse=True)
def breaking() -> Iterator[None]:
    with installed():
        yield


def failed(stage: Stage, config: dict[str, str]) -> None:
    """A federation whose algorithm broke, with all its jobs done as far as it went."""
    stage.create(algorithm="breaking", config=config, rounds=1, clients_per_round=2)
    actors = [stage.join(stage.actor(capabilities=CAPABILITIES, make_update=_update)) for _ in range(2)]
    stage.post("start")
    for _ in range(2):
        _work(actors)
        stage.settle()


def _update(instruction: Payload) -> Payload:
    return Payload({"value": torch.zeros(1)})


def _work(actors: list[Actor]) -> None:
    for actor in actors:
        actor.work()


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("at", STAGES)
def test_of_an_error_of_an_algorithm_only_its_kind_is_told(stage: Stage, at: str, error: str) -> None:
    with logged() as lines:
        failed(stage, {"error": error, "stage": at})
        (line,) = [line for line in lines() if line["event"] == "step_failed"]
    shown = [stage.show(), *(stage.get(part) for part in ("rounds", "clients", "events"))]
    assert (shown[0]["state"], shown[0]["reason"]) == ("failed", "algorithm_failed")
    assert shown[0]["reason_detail"].endswith(f"the coordinator's log has the whole of it under {line['reference']}")
    assert CANARY not in json.dumps([*shown, *(stage.get("rounds", "1", "jobs")["items"])])
    assert CANARY in json.dumps(line)
