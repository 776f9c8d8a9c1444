"""An algorithm of another distribution at the coordinator: listed, run to the end, or named as unusable."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.federation_rig import CAPABILITIES, FederationRig
from tests.support.foreign_distribution import FEDPROX, Install, installing
from tests.support.service import Service

CONFIG = {"local_steps": 2, "batch_size": 4, "mu": 0.1}


@pytest.fixture
def add(tmp_path: Path) -> Iterator[Install]:
    (tmp_path / "site").mkdir()
    with installing(tmp_path / "site") as add:
        yield add


def test_it_is_listed_with_its_distribution(service: Service, add: Install) -> None:
    add("fedloom-fedprox", "fedprox = fedprox", FEDPROX)
    page = service.admin.get("/v1/algorithms").json()
    assert {item["name"]: item["distribution"] for item in page["items"]}["fedprox"] == "fedloom-fedprox"
    assert page["unavailable"] == []
    shown = service.admin.get("/v1/algorithms/fedprox").json()
    assert shown["summary"].startswith("Federated averaging in which every client")
    assert "mu" in shown["config_schema"]["properties"]


def test_one_that_is_unusable_is_named_with_the_reason_and_no_more(service: Service, add: Install) -> None:
    add("other", "broken = broken", {"__init__.py": "raise RuntimeError('/a/path and a password')"})
    page = service.admin.get("/v1/algorithms").json()
    reason = "its package cannot be imported (RuntimeError)"
    assert page["unavailable"] == [{"name": "broken", "distribution": "other", "reason": reason}]
    assert service.admin.get("/v1/algorithms/broken").status_code == 404


def test_a_federation_of_it_runs_to_its_end(rig: FederationRig, add: Install) -> None:
    add("fedloom-fedprox", "fedprox = fedprox", FEDPROX)
    rig.create(algorithm="fedprox", config=CONFIG, rounds=2)
    capabilities = CAPABILITIES.model_copy(update={"algorithms": {"fedprox": 1}})
    for _ in range(2):
        rig.join(rig.actor(capabilities=capabilities))
    rig.post("start")
    rig.play(2)
    assert rig.show()["state"] == "completed"
    assert rig.owner.owner.get(rig.path("adapter")).status_code == 200


def test_a_worker_with_another_revision_takes_no_part_and_says_why(rig: FederationRig, add: Install) -> None:
    add("fedloom-fedprox", "fedprox = fedprox", FEDPROX)
    rig.create(algorithm="fedprox", config=CONFIG, rounds=1)
    capabilities = CAPABILITIES.model_copy(update={"algorithms": {"fedprox": 2}})
    for _ in range(2):
        rig.join(rig.actor(capabilities=capabilities))
    answer = rig.owner.owner.post(rig.path("start"))
    assert answer.status_code in (409, 422)
    assert "revision 1 is required, the worker has 2" in str(answer.json())
