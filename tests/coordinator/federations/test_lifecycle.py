"""Life cycle of a federation: the next step, and the requirements on a worker."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest

from coordinator.errors import Conflict
from coordinator.federations import lifecycle
from coordinator.federations.lifecycle import (
    Complete,
    Describe,
    Event,
    Fail,
    Judge,
    NewestRound,
    OpenRound,
    Snapshot,
    State,
    Step,
    Wait,
)
from federated import registry
from federated.protocol import Capabilities, DatasetFacts
from federated.trainable import Lora
from tests.support.federation_rig import MODEL

STARTED = datetime(2030, 1, 1, tzinfo=UTC)
FRESH = Snapshot(
    state="running",
    facts_known=False,
    clients=3,
    ready=0,
    describing=0,
    submitted_ids=(),
    undescribed_ids=(),
    newest=None,
    stop=None,
    waiting_since=STARTED,
    wait_for_clients_seconds=60,
    min_clients=2,
)
DESCRIBED = replace(FRESH, facts_known=True, ready=3)


def step(seen: Snapshot, seconds: float = 0) -> Step:
    return lifecycle.next_step(seen, STARTED + timedelta(seconds=seconds))


def after(
    state: str, reason: str | None = None, detail: str | None = None, end_reason: str | None = None
) -> Snapshot:
    return replace(DESCRIBED, newest=NewestRound(state, reason, detail, end_reason))


@pytest.mark.parametrize("count", [0, 1, 50, 51, 1000, 1001])
def test_each_federation_has_its_turn_and_few_have_it_at_once(count: int) -> None:
    ids = [f"fed_{number}" for number in range(count)]
    turns = max(1, -(-count // lifecycle.MAX_PER_TURN))
    looked_at = [lifecycle.in_turn(ids, turn) for turn in range(7, 7 + turns)]
    assert all(len(each) <= lifecycle.MAX_PER_TURN for each in looked_at)
    assert sorted(one for each in looked_at for one in each) == sorted(ids)


class TestMoves:
    @pytest.mark.parametrize(("state", "event"), list(product(lifecycle.STATES, lifecycle.EVENTS)))
    def test_only_the_moves_of_the_table_are_possible(self, state: State, event: Event) -> None:
        possible = {
            "draft": {"start": "running", "cancel": "cancelled"},
            "running": {"pause": "paused", "cancel": "cancelled", "complete": "completed", "fail": "failed"},
            "paused": {"resume": "running", "cancel": "cancelled", "complete": "completed", "fail": "failed"},
        }
        to = possible.get(state, {}).get(event)
        if to is None:
            with pytest.raises(Conflict):
                lifecycle.move(state, event)
        else:
            assert lifecycle.move(state, event) == to

    @pytest.mark.parametrize("state", ["draft", *lifecycle.END_STATES])
    def test_nothing_follows_in_a_federation_that_does_not_run(self, state: str) -> None:
        with pytest.raises(Conflict):
            step(replace(FRESH, state=state))


class TestDescribing:
    @pytest.mark.parametrize("state", lifecycle.ACTIVE)
    def test_descriptions_are_judged_and_asked_for_before_anything_else(self, state: str) -> None:
        both = replace(after("closed"), state=state, submitted_ids=("job",), undescribed_ids=("client",))
        assert step(both) == Judge(("job",))
        assert step(replace(both, submitted_ids=())) == Describe(("client",))

    def test_the_first_round_waits_for_those_who_are_there_to_be_described(self) -> None:
        seen = replace(FRESH, facts_known=True, ready=1, describing=2)
        assert step(seen, 20) == Wait(STARTED + timedelta(seconds=60), "describing 1/3, 40 s left")
        assert step(seen, 60) == OpenRound()

    def test_the_first_round_does_not_wait_for_those_who_are_away(self) -> None:
        assert step(replace(FRESH, facts_known=True, ready=1)) == OpenRound()

    def test_without_any_description_the_federation_waits_and_then_fails(self) -> None:
        assert step(FRESH, 1) == Wait(STARTED + timedelta(seconds=60), "waiting_for_clients 0/2, 59 s left")
        failed = step(FRESH, 60)
        assert isinstance(failed, Fail)
        assert failed.reason == "not_enough_clients"


class TestRounds:
    @pytest.mark.parametrize("state", ["waiting", "collecting", "aggregating", "evaluating"])
    def test_an_open_round_is_left_to_itself(self, state: str) -> None:
        assert step(after(state)) == Wait(None, None)

    def test_a_closed_round_is_followed_by_the_next(self) -> None:
        assert step(after("closed")) == OpenRound()

    def test_a_withdrawn_round_is_tried_again(self) -> None:
        assert step(after("withdrawn", "paused")) == OpenRound()

    @pytest.mark.parametrize("state", ["closed", "withdrawn"])
    def test_a_paused_federation_opens_none(self, state: str) -> None:
        assert step(replace(after(state), state="paused")) == Wait(None, "paused")
        assert step(replace(DESCRIBED, state="paused")) == Wait(None, "paused")

    def test_a_failed_round_fails_the_federation_with_its_reason(self) -> None:
        assert step(after("failed", "quorum_missed", "1 of 2")) == Fail("quorum_missed", "1 of 2")

    @pytest.mark.parametrize("state", lifecycle.ACTIVE)
    def test_the_rule_that_stops_it_completes_the_federation(self, state: str) -> None:
        assert step(replace(after("closed"), state=state, stop="target")) == Complete("stopped_target")

    def test_the_algorithms_own_end_comes_first(self) -> None:
        assert step(replace(after("closed", end_reason="converged"), stop="rounds")) == Complete("converged")


class TestMismatch:
    def test_the_first_tensor_that_differs_is_named(self) -> None:
        other = MODEL.tensors[0].model_copy(update={"shape": (3, 4)})
        theirs = MODEL.model_copy(update={"tensors": (other, MODEL.tensors[1])})
        found = lifecycle.mismatch(MODEL, theirs, None)
        assert found is not None
        assert found.startswith("layer.lora_A.weight:")

    def test_the_first_description_is_held_against_the_weights_asked_for(self) -> None:
        assert lifecycle.mismatch(None, MODEL, "0" * 64) is None
        found = lifecycle.mismatch(None, MODEL, "1" * 64)
        assert found is not None
        assert found.startswith("weights_digest:")


CAPABLE = Capabilities(algorithms={"fedavg": 1}, datasets=(DatasetFacts(name="a"),), max_rank=8, models=("tiny",))


class TestWhatAWorkerMustHave:
    def unable(self, capabilities: Capabilities = CAPABLE, dataset: str = "a", **changes: Any) -> str | None:
        definition = {
            "algorithm": "fedavg",
            "algorithm_revision": 1,
            "config": {},
            "trainable": {"kind": "lora", "r": 8, "rank_pattern": {}},
            "base_model": {"id": "tiny"},
        }
        return lifecycle.incompatibility(definition | changes, capabilities, dataset)

    def test_a_worker_with_all_of_it_can(self) -> None:
        assert self.unable() is None

    def test_a_low_limit_is_enough_where_clients_have_ranks_of_their_own(self) -> None:
        wide = {"kind": "lora", "r": 64}
        for name, algorithm in registry.algorithms().items():
            capable = CAPABLE.model_copy(update={"algorithms": {name: algorithm.revision}})
            told = self.unable(capable, algorithm=name, algorithm_revision=algorithm.revision, trainable=wide)
            asked = registry.make_config(name, {}).largest_rank(Lora(r=64), CAPABLE.max_rank)
            assert (told is None) == (asked <= 8)

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"algorithm_revision": 2}, "revision 2 is required, the worker has 1"),
            ({"algorithm": "other"}, "the worker has none"),
            ({"trainable": {"kind": "lora", "r": 9}}, "rank 9"),
            ({"trainable": {"kind": "lora", "r": 1, "rank_pattern": {"query": 16}}}, "rank 16"),
            ({"base_model": {"id": "huge"}}, "'huge'"),
            ({"dataset": "b"}, "'b'"),
        ],
    )
    def test_what_is_missing_is_named(self, changes: dict[str, Any], word: str) -> None:
        told = self.unable(**changes)
        assert told is not None
        assert word in told
