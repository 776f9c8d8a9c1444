"""Steps in processes of their own: one that dies or hangs fails its own federation, and the others go on."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import get_args

import psutil
import pytest

from coordinator.db.sessions import reading, utcnow, writing
from coordinator.errors import ArtifactDamaged, out_of_service
from coordinator.models import Round
from coordinator.rounds import computation, lifecycle, service, step_messages, step_pool, steps
from coordinator.rounds.schemas import Input, RestoreInput
from federated.contract import FederationRefused
from federated.protocol import Capabilities, DatasetFacts
from tests.support.algorithms import installed
from tests.support.federation_rig import DATASET, FederationRig
from tests.support.logged import logged
from tests.support.service import forget_settings

MODULE = "tests.support.step_process"
CAPABILITIES = Capabilities(algorithms={"breaking": 1, "fedavg": 1}, datasets=(DatasetFacts(name=DATASET),))


@pytest.fixture
def pool(data_folder: Path) -> Iterator[None]:
    with installed(), step_pool.running(1, MODULE):
        yield


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings under which a step is soon over its time, and a lost claim soon noticed."""
    monkeypatch.setenv("FEDLOOM_STEP_SECONDS", "20")
    monkeypatch.setenv("FEDLOOM_CLAIM_SECONDS", "0.6")
    forget_settings()


def broken(rig: FederationRig, error: str, at: str) -> dict[str, object]:
    """A federation whose step did that."""
    rig.create(algorithm="breaking", config={"error": error, "stage": at}, rounds=1, clients_per_round=1)
    actor = rig.join(rig.actor(capabilities=CAPABILITIES))
    rig.post("start")
    actor.work()
    rig.settle()
    return rig.show()


@pytest.mark.usefixtures("pool")
class TestAStep:
    def test_is_computed_elsewhere_with_the_same_result(self, rig: FederationRig) -> None:
        rig.running(rounds=1)
        with logged() as lines:
            rig.play(1)
        assert rig.show()["state"] == "completed"
        assert [line for line in lines() if line["event"].startswith("step_")] == []

    def test_that_dies_twice_fails_its_federation_alone(self, rig: FederationRig) -> None:
        with logged() as lines:
            shown = broken(rig, "a process that dies", "plan")
        assert (shown["state"], shown["reason"]) == ("failed", "step_died")
        assert [line["how"] for line in lines() if line["event"] == "step_died"] == [
            "signal SIGKILL (the system kills processes this way when memory runs out)"
        ] * 2
        rig.running(rounds=1)
        rig.play(1)
        assert rig.show()["state"] == "completed"

    def test_that_dies_once_is_done_again(self, rig: FederationRig) -> None:
        actors = rig.running(rounds=1)
        (process,) = _step_processes()
        for actor in actors:
            actor.work()
        os.kill(process.pid, signal.SIGSTOP)  # the next step stays in it until it is killed
        killer = threading.Timer(0.5, process.kill)
        killer.start()
        rig.settle()
        killer.join()
        assert rig.show()["state"] == "completed"
        with reading() as session:
            (round_,) = session.query(Round).all()
            assert (round_.deaths, round_.losses) == (0, 0)

    @pytest.mark.usefixtures("short")
    def test_without_an_end_fails_its_federation(self, rig: FederationRig, monkeypatch: pytest.MonkeyPatch) -> None:
        rig.running(rounds=1)  # the process is warm now
        monkeypatch.setenv("FEDLOOM_STEP_SECONDS", "0.5")
        forget_settings()
        shown = broken(rig, "a step without an end", "start")
        assert (shown["state"], shown["reason"]) == ("failed", "step_overran")
        assert shown["reason_detail"] == "start: it was not done within 0.5 s (step_seconds)"
        assert _step_processes() == []

    @pytest.mark.parametrize("action", ["cancel", "pause"])
    @pytest.mark.usefixtures("short")
    def test_is_given_up_when_its_federation_is_ended(self, rig: FederationRig, action: str) -> None:
        rig.create(
            algorithm="breaking", config={"error": "a step without an end", "stage": "plan"}, clients_per_round=1
        )
        actor = rig.join(rig.actor(capabilities=CAPABILITIES))
        rig.post("start")
        actor.work()
        driving = threading.Thread(target=rig.settle)
        driving.start()
        while [round_["state"] for round_ in rig.rounds()] != ["collecting"]:  # it plans now
            time.sleep(0.05)
        answer = rig.owner.owner.post(rig.path(action), params={"now": True} if action == "pause" else {})
        driving.join(10)
        assert not driving.is_alive()
        assert answer.json()["state"] == {"cancel": "cancelled", "pause": "paused"}[action]
        rig.settle()
        assert rig.rounds()[0]["state"] == "withdrawn"


def _step_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if MODULE in child.cmdline()]


class TestClaims:
    def test_that_pass_again_and_again_fail_the_round(self, rig: FederationRig) -> None:
        rig.running(rounds=1)
        round_id = rig.rounds()[0]["id"]
        now = utcnow() + timedelta(days=1)
        with writing() as session:
            session.get_one(Round, round_id).planned = False  # a step that has to be computed
        for turn in range(lifecycle.MAX_LOSSES):
            with writing() as session:
                assert steps.claim(session, round_id, now + turn * timedelta(hours=1)) is not None
        with writing() as session:
            assert steps.claim(session, round_id, now + timedelta(days=1)) is None
        shown = rig.rounds()[0]
        assert (shown["state"], shown["reason"]) == ("failed", "step_died")

    def test_that_pass_because_the_store_is_away_do_not(self, rig: FederationRig) -> None:
        rig.running(rounds=1)
        round_id = rig.rounds()[0]["id"]
        now = utcnow() + timedelta(days=1)
        with writing() as session:
            session.get_one(Round, round_id).planned = False
        for turn in range(3 * lifecycle.MAX_LOSSES):
            with writing() as session:
                assert steps.claim(session, round_id, now + turn * timedelta(hours=1)) is not None
            with writing() as session:
                service.hold_up(session, round_id, out_of_service("store", OSError()))
        assert rig.rounds()[0]["reason"] == "store_unavailable"


class TestTable:
    def test_has_a_row_for_every_step_that_needs_tensors(self) -> None:
        assert set(steps.STEPS) == set(get_args(lifecycle.ConductorStep))


class TestMessages:
    def test_are_computed_for_every_input(self) -> None:
        assert set(computation.FUNCTIONS) == {*get_args(Input), RestoreInput}

    @pytest.mark.parametrize(
        "error",
        [
            ArtifactDamaged("sha256:" + 64 * "0"),
            out_of_service("disk", OSError("No space left on device")),
            OSError("No space left on device"),
            FederationRefused("the ranks do not fit"),
        ],
    )
    def test_carry_an_error_with_its_words(self, error: Exception) -> None:
        with pytest.raises(type(error)) as raised:
            step_messages.decode(step_messages.encode_error(error))
        assert str(raised.value) == str(error)

    def test_carry_no_text_of_another_error_but_for_the_log(self) -> None:
        with pytest.raises(step_messages.StepError) as raised:
            step_messages.decode(step_messages.encode_error(KeyError("a row")))
        assert (str(raised.value), "a row" in raised.value.trace) == ("KeyError", True)
