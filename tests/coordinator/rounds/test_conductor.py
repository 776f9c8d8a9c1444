"""Work folders of the conductor: those of a killed process are deleted, those in use stay."""

import os
import time
from pathlib import Path

from coordinator.rounds import conductor
from coordinator.rounds.schemas import Method, PlanInput, StartInput
from coordinator.rounds.work_folders import ABANDONED_SECONDS
from coordinator.settings import get_settings
from federated.environment import environment
from tests.support.federation_rig import MODEL

METHOD = Method(
    algorithm="fedavg",
    config={},
    trainable={"kind": "lora", "r": 2},
    model=MODEL.model_dump(mode="json"),
    seed=7,
    number=1,
    kind="train",
    rounds=1,
    client_count=2,
)


class TestTheDesk:
    def test_only_what_was_abandoned_is_cleared(self, data_folder: Path) -> None:
        desk = data_folder / "conductor"
        abandoned, fresh = desk / "abandoned", desk / "fresh"
        for folder in (abandoned, fresh):
            folder.mkdir(parents=True)
            (folder / "state").write_bytes(b"half")
        old = time.time() - ABANDONED_SECONDS - 1
        os.utime(abandoned, (old, old))
        conductor.start(StartInput(METHOD, None))
        assert [folder.name for folder in desk.iterdir()] == ["fresh"]

    def test_it_computes_with_the_threads_of_the_settings_and_says_so(self, data_folder: Path) -> None:
        first = conductor.start(StartInput(METHOD, None))
        assert environment()["aggregation_threads"] == get_settings().aggregation_threads
        assert conductor.start(StartInput(METHOD, None)) == first
        assert (first.phase, first.everybody) == ("train", False)

    def test_for_nobody_nothing_is_planned(self, data_folder: Path) -> None:
        state = conductor.start(StartInput(METHOD, None)).state.digest
        assert conductor.plan(PlanInput(METHOD, state, ())).instructions == {}
