"""A sample of `python -m tests.chaos`: each kind of process dies once, at a step where much is in flight."""

from collections.abc import Iterator

import pytest

from tests.chaos.points import VICTIMS, Point, Victim, step
from tests.chaos.running import Undisturbed, World, world
from tests.support.places import Places

pytestmark = pytest.mark.engines

SAMPLE: dict[Victim, str] = {
    "web": "submission_unanswered",
    "background": "shards_joined",
    "beat": "tick_due",
    "worker": "result_kept",
    "executor": "training",
    "redis": "step_recorded",
    "postgres": "shard_recorded",
}


@pytest.fixture(scope="module")
def chaos(engine: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Undisturbed]]:
    with world(tmp_path_factory.mktemp("chaos")) as running:
        yield running, running.undisturbed()


def test_each_kind_of_process_has_its_turn() -> None:
    assert tuple(SAMPLE) == VICTIMS


def test_an_undisturbed_run_comes_by_every_step_of_the_table(chaos: tuple[World, Undisturbed]) -> None:
    _, undisturbed = chaos
    assert undisturbed.never() == []
    assert [row["not_reproducible"] for row in undisturbed.record["rounds"]] == [[], []]


@pytest.mark.parametrize("victim", SAMPLE)
def test_sigkill_changes_no_bit_and_no_count(chaos: tuple[World, Undisturbed], victim: Victim) -> None:
    running, undisturbed = chaos
    outcome = running.run(Point(step(SAMPLE[victim]), victim, turn=0.5, outage_seconds=0.5, node=1), undisturbed)
    assert outcome.passed, (outcome, running.nodes.story())
