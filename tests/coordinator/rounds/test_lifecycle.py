"""Life cycle of a round: the next step in each of its states."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.errors import Conflict
from coordinator.rounds import lifecycle
from coordinator.rounds.facts import JobFacts, Rules, Snapshot
from coordinator.rounds.lifecycle import (
    Aggregate,
    Check,
    Close,
    Draw,
    Evaluate,
    Fail,
    Join,
    LeaveOut,
    Plan,
    Retry,
    Start,
    Step,
    Wait,
)

OPENED = datetime(2030, 1, 1, tzinfo=UTC)
RULES = Rules(clients_per_round=3, min_clients=2, over_selection=0, wait_for_clients_seconds=60, max_round_retries=1)
WAITING = Snapshot(
    state="waiting",
    everybody=False,
    has_start=True,
    has_plan=False,
    has_result=False,
    evaluation_due=False,
    evaluation_planned=False,
    opened_at=OPENED,
    deadline_at=None,
    evaluation_deadline_at=None,
    alive=frozenset({0, 1, 2, 3}),
    accepted=frozenset(),
    ineligible=frozenset(),
    cohort=(),
    jobs=(),
    evaluations=(),
    retries=0,
)
DEADLINE = OPENED + timedelta(seconds=100)
COLLECTING = replace(WAITING, state="collecting", has_plan=True, cohort=(0, 1, 2), deadline_at=DEADLINE)
EVALUATING = replace(
    COLLECTING, state="evaluating", has_result=True, evaluation_planned=True, evaluation_deadline_at=DEADLINE
)


def at(seconds: float) -> datetime:
    return OPENED + timedelta(seconds=seconds)


def jobs(*states: str) -> tuple[JobFacts, ...]:
    """One job for each ordinal from 0; those submitted came in the reverse order, 10 s apart."""
    return tuple(
        JobFacts(f"job{ordinal}", ordinal, state, 9 - ordinal, at(90 - 10 * ordinal))
        if state == "submitted"
        else JobFacts(f"job{ordinal}", ordinal, state)
        for ordinal, state in enumerate(states)
    )


def accepted(*states: str) -> frozenset[int]:
    return frozenset(ordinal for ordinal, state in enumerate(states) if state == "accepted")


def collecting(*states: str, **changes: object) -> Snapshot:
    return replace(COLLECTING, jobs=jobs(*states), accepted=accepted(*states), **changes)  # type: ignore[arg-type]


def step(seen: Snapshot, seconds: float = 0, rules: Rules = RULES) -> Step:
    return lifecycle.next_step(seen, rules, at(seconds))


class TestMoves:
    @pytest.mark.parametrize(("state", "to"), list(product(lifecycle.STATES, repeat=2)))
    def test_only_the_moves_of_the_table_are_possible(self, state: str, to: str) -> None:
        forward = ["waiting", "collecting", "aggregating", "evaluating", "closed"]
        ends = to in ("failed", "withdrawn")
        open_ = state in forward[:-1]
        follows = (state, to) in pairwise(forward) or (state, to) == ("aggregating", "closed")
        if open_ and (ends or follows):
            assert lifecycle.move(state, to) == to
        else:
            with pytest.raises(Conflict):
                lifecycle.move(state, to)

    @pytest.mark.parametrize("state", sorted(lifecycle.TERMINAL))
    def test_nothing_follows_a_round_that_ended(self, state: str) -> None:
        with pytest.raises(Conflict):
            step(replace(WAITING, state=state))


class TestWaiting:
    def test_the_first_state_is_made_before_anything_else(self) -> None:
        assert step(replace(WAITING, has_start=False, alive=frozenset())) == Start()

    def test_a_cohort_is_drawn_as_soon_as_enough_are_alive(self) -> None:
        assert step(replace(WAITING, alive=frozenset({0, 1, 2}))) == Draw(3)

    def test_too_few_wait_with_words_until_the_time_is_over(self) -> None:
        few = replace(WAITING, alive=frozenset({0, 1}))
        assert step(few, 20.5) == Wait(at(60), "waiting_for_clients 2/3, 40 s left")
        assert step(few, 60) == Draw(3)

    def test_fewer_than_the_quorum_fail_when_the_time_is_over(self) -> None:
        failed = step(replace(WAITING, alive=frozenset({0})), 60)
        assert isinstance(failed, Fail)
        assert failed.reason == "not_enough_clients"
        assert "1 of at least 2 clients" in failed.detail

    def test_over_selection_waits_for_the_clients_it_wants_to_draw(self) -> None:
        rules = replace(RULES, over_selection=2)
        assert step(WAITING, 0, rules) == Wait(at(60), "waiting_for_clients 4/5, 60 s left")
        assert step(replace(WAITING, alive=frozenset(range(5))), 0, rules) == Draw(5)

    def test_another_attempt_draws_only_what_is_missing(self) -> None:
        assert step(replace(WAITING, accepted=frozenset({3}), alive=frozenset({0, 1, 3}))) == Draw(2)

    def test_a_client_whose_update_was_refused_is_not_counted(self) -> None:
        again = replace(WAITING, ineligible=frozenset({0, 1}))
        assert step(again) == Wait(at(60), "waiting_for_clients 2/3, 60 s left")

    def test_with_enough_accepted_before_nobody_is_drawn(self) -> None:
        assert step(replace(WAITING, accepted=frozenset({0, 1, 2}), alive=frozenset())) == Draw(0)

    def test_a_state_that_asks_for_everybody_gets_all_alive(self) -> None:
        assert step(replace(WAITING, everybody=True)) == Draw(4)
        assert step(replace(WAITING, everybody=True, accepted=frozenset({0, 1, 2}))) == Draw(1)


class TestCollecting:
    def test_jobs_are_planned_before_updates_are_awaited(self) -> None:
        assert step(replace(COLLECTING, has_plan=False)) == Plan()

    def test_submitted_updates_are_checked_in_order_of_submission(self) -> None:
        assert step(collecting("submitted", "leased", "submitted")) == Check(("job2", "job0"))

    def test_no_more_are_checked_than_the_round_has_room_for(self) -> None:
        four = collecting("accepted", "submitted", "accepted", "submitted", cohort=(0, 1, 2, 3))
        assert step(four) == Check(("job3",))

    def test_the_wait_says_who_does_what(self) -> None:
        seen = collecting("accepted", "leased", "expired", cohort=(0, 1, 2))
        assert step(seen, 60) == Wait(DEADLINE, "collecting 1/3, 1 training, 1 lost, 40 s left")
        assert step(collecting("offered", "leased", "leased"), 60) == Wait(
            DEADLINE, "collecting 0/3, 2 training, 1 not started, 40 s left"
        )

    def test_the_round_closes_as_soon_as_enough_are_accepted(self) -> None:
        assert step(collecting("accepted", "accepted", "accepted", "leased")) == Aggregate()

    @pytest.mark.parametrize("lost", ["failed", "declined", "expired", "withdrawn", "rejected"])
    def test_with_no_job_open_the_quorum_is_enough(self, lost: str) -> None:
        assert step(collecting("accepted", "accepted", lost)) == Aggregate()

    def test_at_the_deadline_the_quorum_is_enough(self) -> None:
        seen = collecting("accepted", "accepted", "leased")
        assert isinstance(step(seen, 99.9), Wait)
        assert step(seen, 100) == Aggregate(missed_deadline=True)

    def test_what_was_submitted_in_time_is_checked_after_the_deadline(self) -> None:
        assert step(collecting("accepted", "submitted", "leased"), 500) == Check(("job1",))

    def test_what_came_after_the_deadline_does_not_count(self) -> None:
        late = JobFacts("job2", 2, "submitted", 1, at(100.1))
        seen = replace(collecting("accepted", "accepted"), jobs=(*jobs("accepted", "accepted"), late))
        assert step(seen, 101) == Aggregate(missed_deadline=True)

    @pytest.mark.parametrize(("states", "seconds"), [(("accepted", "leased", "leased"), 100), (("failed",) * 3, 0)])
    def test_a_missed_quorum_is_tried_again_while_retries_are_left(
        self, states: tuple[str, ...], seconds: float
    ) -> None:
        again = step(collecting(*states), seconds)
        assert isinstance(again, Retry)
        failed = step(collecting(*states, retries=1), seconds)
        assert isinstance(failed, Fail)
        assert failed.reason == "quorum_missed"
        assert failed.detail.startswith(again.detail)
        assert f"client 2: {'no answer' if seconds else 'failed'}" in failed.detail

    def test_no_further_attempt_is_made_when_those_that_could_be_asked_are_too_few(self) -> None:
        refused = {"participants": frozenset({0, 1, 2}), "ineligible": frozenset({1, 2})}
        few = collecting("accepted", "failed", "failed", remaining=frozenset({0}), **refused)
        failed = step(few)
        assert isinstance(failed, Fail)
        assert failed.reason == "quorum_missed"
        assert failed.detail.endswith("Another attempt could ask 0 more clients, which is too few.")
        assert isinstance(step(replace(few, remaining=frozenset({0, 3}))), Retry)

    def test_a_missed_quorum_tells_the_most_frequent_reason(self) -> None:
        broken = "training_failed (IndexError at a.b:40)"
        lost = {0: "out_of_memory", 1: broken, 2: broken}
        seen = collecting("failed", "failed", "failed", participants=frozenset({0, 1, 2}), losses=lost)
        for following in (step(seen), step(replace(seen, retries=1))):
            assert isinstance(following, Retry | Fail)
            assert f"2 of 3 clients: {broken}." in following.detail
        waited = step(replace(WAITING, alive=frozenset(), participants=frozenset({0, 1, 2}), losses=lost), 60)
        assert isinstance(waited, Fail)
        assert waited.detail.endswith(f"2 of 3 clients: {broken}.")

    def test_what_earlier_attempts_accepted_counts(self) -> None:
        seen = replace(collecting("accepted", "accepted"), accepted=frozenset({0, 1, 7}), retries=1)
        assert step(seen) == Aggregate()

    def test_with_everybody_asked_all_must_answer(self) -> None:
        four = {"cohort": (0, 1, 2, 3), "everybody": True}
        assert isinstance(step(collecting("accepted", "accepted", "accepted", "leased", **four)), Wait)
        assert step(collecting("accepted", "accepted", "accepted", "accepted", **four)) == Aggregate()
        assert step(collecting("accepted", "accepted", "accepted", "leased", **four), 100) == Aggregate(True)

    def test_an_attempt_that_drew_nobody_aggregates_what_there_is(self) -> None:
        assert step(replace(COLLECTING, cohort=(), accepted=frozenset({4, 5, 6}))) == Aggregate()


class TestAfterCollecting:
    def test_an_aggregation_that_was_begun_is_done_again_until_it_is_recorded(self) -> None:
        begun = collecting("accepted", "accepted", "withdrawn", state="aggregating")
        assert step(begun, 1000) == Aggregate()

    def test_an_aggregated_round_is_evaluated_when_that_is_due(self) -> None:
        done = replace(COLLECTING, state="aggregating", has_result=True)
        assert step(done) == Close()
        assert step(replace(done, evaluation_due=True)) == Evaluate()

    def test_evaluation_waits_for_the_answers_and_not_beyond_its_deadline(self) -> None:
        seen = replace(EVALUATING, evaluations=jobs("submitted", "leased"))
        assert step(seen, 40) == Wait(DEADLINE, "evaluating 1/2, 60 s left")
        assert step(seen, 100) == Close()

    def test_evaluation_ends_when_nobody_is_asked_any_more(self) -> None:
        assert step(replace(EVALUATING, evaluations=jobs("submitted", "failed"))) == Close()
        assert step(EVALUATING) == Close()


STATE_OF_JOB = st.sampled_from(["offered", "leased", "submitted", "accepted", "rejected", "failed", "expired"])


class TestWhateverHappens:
    @given(
        st.lists(STATE_OF_JOB, max_size=6),
        st.frozensets(st.integers(6, 9), max_size=3),
        st.integers(0, 2),
        st.floats(0, 200),
        st.booleans(),
    )
    def test_a_collecting_round_always_has_a_next_step_and_never_accepts_too_many(
        self, states: list[str], earlier: frozenset[int], retries: int, seconds: float, everybody: bool
    ) -> None:
        seen = replace(
            collecting(*states, cohort=tuple(range(len(states)))),
            accepted=accepted(*states) | earlier,
            retries=retries,
            everybody=everybody,
        )
        following = step(seen, seconds)
        assert isinstance(following, Check | Aggregate | Wait | Retry | Fail)
        if isinstance(following, Check) and not everybody:
            assert len(seen.accepted) + len(following.job_ids) <= RULES.clients_per_round
        if isinstance(following, Aggregate):
            assert len(seen.accepted) >= RULES.min_clients
        if isinstance(following, Wait):
            assert following.until == DEADLINE
            assert seconds < 100


class TestLabels:
    def test_there_are_some_for_every_step(self) -> None:
        steps: list[Step] = [
            Start(), Draw(2), Plan(), Check(("job1",)), LeaveOut((1,)), Aggregate(), Join(), Evaluate(), Close(),
            Retry("few"), Fail("quorum_missed", "few"), Wait(None, "aggregating 1/2 shards"),
        ]  # fmt: skip
        assert {type(one) for one in steps} == set(get_args(Step))
        assert all(one.label for one in steps)
