"""A disk is full, at the coordinator or at a worker: said, waited for, and over when somebody makes room."""

import hashlib
import random
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.faults.adapters import in_round, whole_adapter
from tests.faults.conftest import Disks
from tests.support.federation_rig import FederationRig
from tests.support.nodes import END_SECONDS, POLLING_SECONDS, Consortium
from tests.support.service import created, problem, upload
from tests.support.small_disk import SmallDisk, small_disk

pytestmark = pytest.mark.sqlite

ROUNDS = 3
CONFIG = {"local_steps": 60, "batch_size": 8, "learning_rate": 0.02}
CLAIM_SECONDS = 0.5


@pytest.fixture
def quick_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was held up is tried again soon."""
    monkeypatch.setenv("FEDLOOM_CLAIM_SECONDS", str(CLAIM_SECONDS))


@pytest.fixture
def store(quick_claims: None, data_folder: Path) -> Iterator[SmallDisk]:
    """The disk under the artifacts of the federation of `rig`."""
    with small_disk(data_folder / "artifacts", 8 * 1024**2) as disk:
        yield disk


def held_up(rig: FederationRig) -> list[str]:
    return [row["data"]["reason"] for row in rig.get("events")["items"] if row["type"] == "round.held_up"]


class TestAStoreWithoutRoom:
    def test_refuses_an_update_and_takes_it_when_there_is_room(self, store: SmallDisk, rig: FederationRig) -> None:
        first, _ = rig.running(rounds=1)
        lease = first.lease()
        assert lease is not None
        content = first.make_update(first.instruction(lease)).encode()
        store.fill()
        announcement = {"size_bytes": len(content), "digest": "sha256:" + hashlib.sha256(content).hexdigest()}
        announced = created(first.http.post("/v1/artifacts/uploads", json=announcement))
        chunk = f"/v1/artifacts/uploads/{announced['upload_id']}/chunks/0"
        refused = first.http.put(chunk, content=content)
        assert "has no space left" in problem(refused, 503, "store_full")["detail"]
        assert int(refused.headers["retry-after"]) > 0
        (shown,) = rig.rounds()
        assert shown["state"] == "collecting"
        assert shown["waiting_for"].endswith("held up: store_full")
        shown = first.http.get(f"/v1/artifacts/uploads/{announced['upload_id']}").json()
        assert (shown["state"], shown["problem"]["code"]) == ("open", "store_full")
        store.free()
        first.http.put(chunk, content=content).raise_for_status()
        assert "held up" not in rig.rounds()[0]["waiting_for"]
        first.submit(lease).raise_for_status()
        rig.play(1)
        assert [row["accepted"] for row in rig.rounds()] == [[0, 1]]

    def test_holds_an_aggregation_up_that_goes_on_by_itself(self, store: SmallDisk, rig: FederationRig) -> None:
        for actor in rig.running(rounds=2):
            assert actor.work() == "train"
        store.fill()
        rig.settle()
        (shown,) = rig.rounds()
        assert (shown["state"], shown["reason"], shown["accepted"]) == ("aggregating", "store_full", [0, 1])
        assert shown["waiting_for"].endswith("held up: store_full")
        time.sleep(2 * CLAIM_SECONDS)
        rig.reconcile()
        assert held_up(rig) == ["store_full"], "said once, however often it was tried"
        store.free()
        time.sleep(2 * CLAIM_SECONDS)
        rig.reconcile()
        rig.play(1)
        assert {row["reason"] for row in rig.rounds()} == {None}
        digests = [row["state_digest"] for row in rig.rounds()]
        rig.running(rounds=2)
        rig.play(2)
        assert [row["state_digest"] for row in rig.rounds()] == digests


@pytest.fixture(scope="module")
def undisturbed(nodes: Consortium) -> bytes:
    """The adapter of a run that had room."""
    return whole_adapter(nodes, nodes.start(rounds=ROUNDS, config=CONFIG), ROUNDS)


@pytest.fixture(scope="module")
def admin(nodes: Consortium, admin_key: str) -> Iterator[httpx.Client]:
    with nodes.installation.client(admin_key) as client:
        yield client


def until(answer: Callable[[], Any]) -> None:
    """Waits until this holds."""
    deadline = time.monotonic() + END_SECONDS
    while not answer():
        assert time.monotonic() < deadline
        time.sleep(POLLING_SECONDS)


def put_chunk(admin: httpx.Client, content: bytes) -> httpx.Response:
    """Sends the only chunk of an upload."""
    announcement = {"size_bytes": len(content), "digest": "sha256:" + hashlib.sha256(content).hexdigest()}
    announced = created(admin.post("/v1/artifacts/uploads", json=announcement))
    return admin.put(f"/v1/artifacts/uploads/{announced['upload_id']}/chunks/0", content=content)


class TestAFederation:
    def test_waits_for_room_in_the_store(self, nodes: Consortium, disks: Disks, admin: httpx.Client) -> None:
        own = CONFIG | {"learning_rate": 0.03}  # what another federation has left in the store needs no more room
        disks.store.fill()
        federation_id = nodes.start(rounds=ROUNDS, config=own)
        nodes.wait(federation_id, lambda _, rounds: any(row["reason"] == "store_full" for row in rounds))
        problem(put_chunk(admin, b"a" * 5000), 503, "store_full")
        assert nodes.owner.http.get("/readyz").json()["checks"]["store"] == "has no room for another chunk"
        disks.store.free()
        nodes.wait(federation_id, in_round(2))
        offset = nodes.installation.log.stat().st_size
        disks.store.fill()
        until(lambda: b"No space left on device" in nodes.installation.log.read_bytes()[offset:])
        disks.store.free()
        adapter = whole_adapter(nodes, federation_id, ROUNDS)
        assert adapter == whole_adapter(nodes, nodes.start(rounds=ROUNDS, config=own), ROUNDS)

    def test_waits_for_room_in_the_data_folder(
        self, nodes: Consortium, disks: Disks, undisturbed: bytes, admin: httpx.Client
    ) -> None:
        federation_id = nodes.start(rounds=ROUNDS, config=CONFIG)
        nodes.wait(federation_id, in_round(2))
        disks.data.fill()
        disks.store.fill()
        answers: list[httpx.Response] = []

        def refused() -> bool:
            answers.append(admin.post("/v1/organizations", json={"name": f"another {len(answers)}"}))
            return answers[-1].status_code != 201

        until(refused)
        problem(answers[-1], 503, "database_full")
        assert nodes.get(federation_id)["state"] == "running", "reading goes on"
        disks.data.free()
        disks.store.free()
        assert whole_adapter(nodes, federation_id, ROUNDS) == undisturbed

    def test_waits_for_room_at_a_worker(self, nodes: Consortium, disks: Disks, undisturbed: bytes) -> None:
        federation_id = nodes.start(rounds=ROUNDS, config=CONFIG)
        nodes.wait(federation_id, in_round(2))
        disks.worker.fill()

        def given_back(_: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> bool:
            jobs = nodes.get(federation_id, "rounds", str(rounds[-1]["number"]), "jobs")["items"]
            return any((job["problem"] or {}).get("code") == "disk_full" for job in jobs)

        nodes.wait(federation_id, given_back)
        disks.worker.free()
        assert whole_adapter(nodes, federation_id, ROUNDS) == undisturbed


class TestAFileThatMayNotGrow:
    """What needs no disk of our own: the kernel lets the web process write no larger file."""

    LARGEST_BYTES = 12 * 1024**2

    def test_holds_an_upload_up_that_is_larger(self, nodes: Consortium, admin: httpx.Client) -> None:
        content = random.Random(1).randbytes(self.LARGEST_BYTES + 1)
        announcement = {"size_bytes": len(content), "digest": "sha256:" + hashlib.sha256(content).hexdigest()}
        announced = created(admin.post("/v1/artifacts/uploads", json=announcement))
        path, size = f"/v1/artifacts/uploads/{announced['upload_id']}", announced["chunk_bytes"]
        *others, last = range(announced["chunks"])
        for index in others:
            admin.put(f"{path}/chunks/{index}", content=content[index * size :][:size]).raise_for_status()
        web = psutil.Process(nodes.installation.pid_of("web"))
        web.rlimit(psutil.RLIMIT_FSIZE, (self.LARGEST_BYTES, resource.RLIM_INFINITY))
        problem(admin.put(f"{path}/chunks/{last}", content=content[last * size :]), 503, "store_full")
        held_up = admin.get(path).json()
        assert (held_up["state"], held_up["problem"]["code"]) == ("open", "store_full")
        assert held_up["chunks_present"] == others
        web.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        upload(admin, content, announcement["digest"])
        until(lambda: admin.get(path).json()["state"] == "complete")
        assert admin.get(path).json()["problem"] is None
        assert admin.get(f"/v1/artifacts/{announcement['digest']}").content == content
        assert nodes.installation.pid_of("web") == web.pid
