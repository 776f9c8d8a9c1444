"""Disclosure of failures in the coordinator: tenants read a step, a type of error and a reference, never its text."""

import json
from collections.abc import Iterator

import pytest
import torch

from federated.payloads.payload import Payload
from federated.protocol import Capabilities, DatasetFacts
from tests.support.algorithms import installed
from tests.support.algorithms.breaking.exceptions import CANARY
from tests.support.federation_rig import DATASET, Actor, FederationRig
from tests.support.logged import logged

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


def failed(rig: FederationRig, config: dict[str, str]) -> None:
    """A federation whose algorithm broke, with all its jobs done as far as it went."""
    rig.create(algorithm="breaking", config=config, rounds=1, clients_per_round=2)
    actors = [rig.join(rig.actor(capabilities=CAPABILITIES, make_update=_update)) for _ in range(2)]
    rig.post("start")
    for _ in range(2):
        _work(actors)
        rig.settle()


def _update(instruction: Payload) -> Payload:
    return Payload({"value": torch.zeros(1)})


def _work(actors: list[Actor]) -> None:
    for actor in actors:
        actor.work()


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("at", STAGES)
def test_of_an_error_of_an_algorithm_only_its_kind_is_told(rig: FederationRig, at: str, error: str) -> None:
    with logged() as lines:
        failed(rig, {"error": error, "stage": at})
        (line,) = [line for line in lines() if line["event"] == "step_failed"]
    shown = [rig.show(), *(rig.get(part) for part in ("rounds", "clients", "events"))]
    assert (shown[0]["state"], shown[0]["reason"]) == ("failed", "algorithm_failed")
    assert shown[0]["reason_detail"].endswith(f"the coordinator's log has the whole of it under {line['reference']}")
    assert CANARY not in json.dumps([*shown, *(rig.get("rounds", "1", "jobs")["items"])])
    assert CANARY in json.dumps(line)
