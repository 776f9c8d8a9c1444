"""Stored bytes are lost or changed: found before they are used, named, and made again of what is whole."""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import httpx
import obstore
import pytest

from coordinator.artifacts import service as artifacts
from coordinator.artifacts.store import objects
from coordinator.db.sessions import reading
from coordinator.models import Job
from coordinator.settings import get_settings
from federated.payloads.payload import Payload
from tests.support.federation_rig import Actor, B, FederationRig, update_of
from tests.support.service import problem

DAMAGED = "artifact_damaged"


def key_of(digest: str) -> str:
    return "sha256/" + digest.removeprefix("sha256:")


def flip(digest: str) -> None:
    """One bit in the middle is another."""
    content = bytearray(obstore.get(objects.open_store(), key_of(digest)).bytes())
    content[len(content) // 2] ^= 4
    obstore.put(objects.open_store(), key_of(digest), bytes(content))


def delete(digest: str) -> None:
    obstore.delete(objects.open_store(), key_of(digest))


HOW: Mapping[str, Callable[[str], None]] = {"flipped": flip, "deleted": delete}
# What a remote store holds is read as it is sent, not before.
SEEN_BEFORE_A_DOWNLOAD = [pytest.param("flipped", marks=pytest.mark.sqlite), "deleted"]


@pytest.fixture(params=list(HOW))
def damage(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Spoils an artifact, and the copies of it that this machine keeps of a remote store."""

    def spoil(digest: str) -> None:
        HOW[request.param](digest)
        shutil.rmtree(get_settings().data_folder / "cache", ignore_errors=True)
        assert not artifacts.is_whole(digest)

    return spoil


@pytest.fixture(scope="module")
def kept() -> list[str]:
    """For all tests here: the same updates give the same states, whoever's federation it is."""
    return []


@pytest.fixture
def undisturbed(rig: FederationRig, kept: list[str]) -> list[str]:
    """Digests of the states of a federation that nothing happened to."""
    if not kept:
        running(rig, 2)
        rig.play(2)
        kept.extend(states(rig))
    return kept


def running(rig: FederationRig, rounds: int) -> list[Actor]:
    """A federation of two whose updates are never alike."""
    actors = rig.running(rounds=rounds)
    for ordinal, actor in enumerate(actors):
        actor.make_update = partial(update_from, ordinal)
    return actors


def update_from(ordinal: int, instruction: Payload) -> Payload:
    return update_of(float(instruction[B].sum()) + 0.1 * ordinal + 1.0, instruction)


def states(rig: FederationRig) -> list[str]:
    return [row["state_digest"] for row in rig.rounds() if row["state"] == "closed"]


def jobs(rig: FederationRig, number: int, attempt: int = 1) -> dict[int, dict[str, Any]]:
    """The train jobs of a round by ordinal."""
    rows = rig.get("rounds", str(number), "jobs", attempt=attempt)["items"]
    return {row["ordinal"]: row for row in rows if row["kind"] == "train"}


def submitted(rig: FederationRig, ordinal: int, number: int = 1) -> str:
    """The digest of what a client submitted in a round."""
    with reading() as session:
        return str(session.get_one(Job, jobs(rig, number)[ordinal]["id"]).update_digest)


def held_up(rig: FederationRig) -> list[str]:
    return [row["data"]["reason"] for row in rig.get("events")["items"] if row["type"] == "round.held_up"]


class TestAnUpdate:
    def test_damaged_before_it_was_checked_is_asked_for_again(
        self, rig: FederationRig, undisturbed: list[str], damage: Callable[[str], None]
    ) -> None:
        first, second = running(rig, 2)
        first.work(), second.work()
        damage(submitted(rig, 0))
        rig.settle()
        assert held_up(rig) == [DAMAGED]
        assert {ordinal: job["state"] for ordinal, job in jobs(rig, 1).items()} == {0: "offered", 1: "accepted"}
        assert jobs(rig, 1)[0]["problem"]["code"] == DAMAGED
        assert first.work() == "train"
        rig.settle()
        rig.play(1)
        assert states(rig) == undisturbed
        assert [(row["attempt"], row["accepted"]) for row in rig.rounds()] == [(1, [0, 1])] * 2

    def test_damaged_after_it_was_accepted_is_asked_for_again_in_another_attempt(
        self, rig: FederationRig, undisturbed: list[str], damage: Callable[[str], None]
    ) -> None:
        first, second = running(rig, 2)
        first.work()
        rig.settle()
        assert rig.rounds()[0]["accepted"] == [0]
        damage(submitted(rig, 0))
        second.work()
        rig.settle()
        lost = jobs(rig, 1)[0]
        assert (lost["state"], lost["problem"]["code"]) == ("failed", DAMAGED)
        before, now = rig.rounds()
        assert (before["state"], before["reason"]) == ("withdrawn", DAMAGED)
        assert before["reason_detail"].startswith("The stored bytes of the update of client 0 (sha256:")
        assert (now["attempt"], now["cohort"], now["accepted"]) == (2, [0], [1])
        assert first.work() == "train"
        rig.settle()
        rig.play(1)
        assert states(rig) == undisturbed
        assert rig.rounds()[1]["not_reproducible"] == ["retry"]

    def test_damaged_before_it_was_submitted_is_uploaded_again(
        self, rig: FederationRig, undisturbed: list[str], damage: Callable[[str], None]
    ) -> None:
        first, second = running(rig, 2)
        lease = first.lease()
        assert lease is not None
        digest = first.put(first.make_update(first.instruction(lease)))
        damage(digest)
        body = {"update": first.signed(lease, digest, 10.0, 10)}
        answer = first.http.post(f"/v1/jobs/{lease['job_id']}/submit", json=body)
        if answer.status_code == 200:  # the bit was in a tensor: the check finds it
            rig.settle()
            assert jobs(rig, 1)[0]["state"] == "offered"
            assert first.work() == "train"
        else:
            assert problem(answer, 503, DAMAGED)["detail"].startswith(f"The stored bytes of {digest} are lost")
            assert int(answer.headers["retry-after"]) > 0
            rig.settle()
            first.submit(lease).raise_for_status()
        assert second.work() == "train"
        rig.settle()
        rig.play(1)
        assert states(rig) == undisturbed


class TestWhatTheCoordinatorMade:
    @pytest.mark.parametrize("number", [1, 2])
    def test_a_damaged_state_is_made_again(
        self, rig: FederationRig, undisturbed: list[str], damage: Callable[[str], None], number: int
    ) -> None:
        actors = running(rig, 2)
        rig.play(number - 1)
        start = rig.rounds()[-1]["start_digest"]
        damage(start)
        for actor in actors:
            actor.work()
        rig.settle()
        assert held_up(rig) == [DAMAGED]
        assert artifacts.is_whole(start)
        if number == 1:
            rig.play(1)
        assert states(rig) == undisturbed
        assert rig.show()["state"] == "completed"
        assert [row["reason"] for row in rig.rounds()] == [None, None]

    def test_a_damaged_instruction_is_made_again_when_a_worker_finds_it(
        self, rig: FederationRig, undisturbed: list[str], damage: Callable[[str], None]
    ) -> None:
        first, second = running(rig, 2)
        lease = first.lease()
        assert lease is not None
        digest = lease["instruction"]["digest"]
        damage(digest)
        answer = first.http.get(f"/v1/artifacts/{digest}")
        if answer.status_code == 200:  # as many bytes as ever: who reads them all finds it
            body = {"boot_id": first.worker.boot_id, "code": DAMAGED, "detail": "other bytes", "transient": True}
            first.http.post(f"/v1/jobs/{lease['job_id']}/fail", json=body).raise_for_status()
            assert jobs(rig, 1)[0]["problem"]["code"] == DAMAGED
        else:
            problem(answer, 503, DAMAGED)
        rig.settle()
        assert artifacts.is_whole(digest)
        assert (first.work(), second.work()) == ("train", "train")
        rig.settle()
        rig.play(1)
        assert states(rig) == undisturbed

    def test_an_initial_adapter_is_made_again_by_the_round_it_is_from(
        self, rig: FederationRig, damage: Callable[[str], None]
    ) -> None:
        running(rig, 1)
        rig.play(1)
        digest = rig.rounds()[0]["adapter"]["files"]["adapter_model.safetensors"]["digest"]
        rig.create(initial_adapter={"federation_id": rig.federation_id, "round": 1}, rounds=1)
        damage(digest)
        for actor in rig.actors:
            rig.join(actor)
        rig.post("start")
        rig.play(1)
        assert artifacts.is_whole(digest)
        assert held_up(rig) == [DAMAGED]
        assert rig.show()["state"] == "completed"

    @pytest.mark.parametrize("damage", SEEN_BEFORE_A_DOWNLOAD, indirect=True)
    def test_a_damaged_adapter_is_not_handed_out_and_made_again(
        self, rig: FederationRig, damage: Callable[[str], None]
    ) -> None:
        running(rig, 1)
        rig.play(1)
        before = download(rig)
        name = "adapter_model.safetensors"
        damage(rig.rounds()[0]["adapter"]["files"][name]["digest"])
        for path in (["adapter"], ["adapter", name], ["rounds", "1", "adapter"]):
            problem(rig.owner.owner.get(rig.path(*path)), 503, DAMAGED)
        rig.settle()
        assert download(rig).content == before.content

    @pytest.mark.engines
    @pytest.mark.parametrize("damage", ["flipped"], indirect=True)
    def test_a_damaged_adapter_of_a_remote_store_breaks_off_and_is_made_again(
        self, rig: FederationRig, damage: Callable[[str], None]
    ) -> None:
        running(rig, 1)
        rig.play(1)
        before = download(rig)
        damage(rig.rounds()[0]["adapter"]["files"]["adapter_model.safetensors"]["digest"])
        with pytest.raises(httpx.RemoteProtocolError):
            download(rig)
        rig.settle()
        assert download(rig).content == before.content

    @pytest.mark.parametrize("damage", SEEN_BEFORE_A_DOWNLOAD, indirect=True)
    def test_an_adapter_that_nothing_is_left_of_is_named_in_its_round(
        self, rig: FederationRig, damage: Callable[[str], None]
    ) -> None:
        running(rig, 1)
        rig.play(1)
        row = rig.rounds()[0]
        damage(row["adapter"]["files"]["adapter_model.safetensors"]["digest"])
        damage(row["state_digest"])
        delete(submitted(rig, 0))
        problem(download(rig), 503, DAMAGED)
        rig.settle()
        problem(download(rig), 503, DAMAGED)
        shown = rig.rounds()[0]
        assert (shown["state"], shown["reason"]) == ("closed", DAMAGED)
        assert shown["reason_detail"].startswith("The stored bytes of the adapter (sha256:")


class TestWhatCannotBeMadeAgain:
    def test_a_federation_whose_state_is_lost_with_its_updates_fails_and_says_so(
        self, rig: FederationRig, damage: Callable[[str], None]
    ) -> None:
        actors = running(rig, 2)
        rig.play(1)
        damage(submitted(rig, 1))
        damage(rig.rounds()[0]["state_digest"])
        for actor in actors:
            actor.work()
        rig.settle()
        ended(rig)


def ended(rig: FederationRig) -> None:
    shown = rig.show()
    assert (shown["state"], shown["reason"]) == ("failed", DAMAGED)
    assert "sha256:" in shown["reason_detail"]
    assert {job["state"] for row in rig.rounds() for job in jobs(rig, row["number"], row["attempt"]).values()} <= {
        "accepted",
        "failed",
        "withdrawn",
    }


def download(rig: FederationRig) -> httpx.Response:
    return rig.owner.owner.get(rig.path("adapter"))
