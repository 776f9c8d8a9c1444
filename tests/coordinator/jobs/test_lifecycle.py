"""Life cycle of a job over the full product of states and events, and the rules of a submission."""

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest
from pydantic import ValidationError

from coordinator.errors import Conflict, Unprocessable
from coordinator.jobs import lifecycle
from coordinator.jobs.lifecycle import EVENTS, STATES, Event, LeaseTimes
from federated.protocol import SubmitRequest

TABLE = """
          lease  renew  hand_back retry   submit    accept   reject   fail   decline  expire  withdraw  lose
offered   leased -      -         -       submitted -        -        -      -        -       withdrawn -
leased    -      leased offered   offered submitted -        -        failed declined expired withdrawn -
submitted -      -      -         -       -         accepted rejected -      -        -       withdrawn offered
accepted  -      -      -         -       -         -        -        -      -        -       -         failed
rejected  -      -      -         -       -         -        -        -      -        -       -         -
failed    -      -      -         -       -         -        -        -      -        -       -         -
declined  -      -      -         -       -         -        -        -      -        -       -         -
expired   -      -      -         -       -         -        -        -      -        -       -         -
withdrawn -      -      -         -       -         -        -        -      -        -       -         -
"""
DIGEST = "sha256:" + "0" * 64
NOW = datetime(2025, 1, 1, tzinfo=UTC)


def moves() -> dict[tuple[str, str], str]:
    head, *rows = (line.split() for line in TABLE.strip().splitlines())
    return {(row[0], event): cell for row in rows for event, cell in zip(head, row[1:], strict=True)}


@pytest.mark.parametrize(("state", "event"), list(product(STATES, EVENTS)))
def test_a_job_moves_as_the_table_says_and_no_other_way(state: str, event: Event) -> None:
    wanted = moves()[state, event]
    if wanted != "-":
        assert lifecycle.move(state, event) == wanted
        return
    with pytest.raises(Conflict) as refusal:
        lifecycle.move(state, event)
    assert refusal.value.code == "illegal_transition"
    assert f"is {state} has no move {event}" in refusal.value.detail


@pytest.mark.parametrize(
    ("attempt", "worker_alive", "wanted"), [(1, True, "retry"), (3, True, "expire"), (1, False, "expire")]
)
def test_a_lost_lease_is_offered_again_while_the_worker_lives_and_attempts_are_left(
    attempt: int, worker_alive: bool, wanted: str
) -> None:
    assert lifecycle.after_loss(attempt, 3, worker_alive) == wanted


@pytest.mark.parametrize(
    ("transient", "attempt", "wanted"), [(True, 2, "retry"), (True, 3, "fail"), (False, 1, "fail")]
)
def test_only_a_transient_failure_is_offered_again_while_attempts_are_left(
    transient: bool, attempt: int, wanted: str
) -> None:
    assert lifecycle.after_failure(transient, attempt, 3, True) == wanted


UNFORESEEN = {"code": "training_failed", "error": "IndexError", "place": "worker_agent.training.forward:40"}


@pytest.mark.parametrize(
    ("before", "now", "repeated"),
    [
        (UNFORESEEN, UNFORESEEN, True),
        ({**UNFORESEEN, "detail": "of another attempt"}, UNFORESEEN, True),
        (None, UNFORESEEN, False),
        ({**UNFORESEEN, "error": "RuntimeError"}, UNFORESEEN, False),
        ({**UNFORESEEN, "place": "worker_agent.training.forward:41"}, UNFORESEEN, False),
        ({"code": "disk_full"}, UNFORESEEN, False),
        ({**UNFORESEEN, "place": None}, {**UNFORESEEN, "place": None}, False),
        ({"code": "training_failed"}, {"code": "training_failed"}, False),
        ({**UNFORESEEN, "code": "out_of_memory"}, {**UNFORESEEN, "code": "out_of_memory"}, False),
    ],
)
def test_an_unforeseen_error_is_repeated_where_kind_and_place_are_those_before(
    before: dict[str, Any] | None, now: dict[str, Any], repeated: bool
) -> None:
    assert lifecycle.is_repeated(before, now) is repeated


@pytest.mark.parametrize(
    ("kind", "round_state", "federation_state", "wanted"),
    [
        ("describe", None, "running", True),
        ("describe", None, "paused", True),
        ("describe", None, "cancelled", False),
        ("train", "collecting", "running", True),
        ("train", "collecting", "paused", True),
        ("train", "aggregating", "running", False),
        ("train", "withdrawn", "running", False),
        ("evaluate", "evaluating", "running", True),
        ("evaluate", "closed", "running", False),
    ],
)
def test_results_are_wanted_until_the_round_goes_on(
    kind: str, round_state: str | None, federation_state: str, wanted: bool
) -> None:
    assert lifecycle.takes_results(kind, round_state, federation_state) is wanted


class TestUnheardLease:
    """`lease_seconds` is 60: a renewal comes every 20 s."""

    fresh = LeaseTimes(NOW, NOW + timedelta(seconds=60), 60)
    renewed = LeaseTimes(NOW, NOW + timedelta(seconds=80), 60)

    def test_a_worker_with_one_slot_that_asks_again_has_not_heard_of_a_lease_it_never_renewed(self) -> None:
        assert lifecycle.is_unheard(self.fresh, NOW + timedelta(seconds=1), slots=1)

    def test_a_renewed_lease_was_heard_of(self) -> None:
        assert not lifecycle.is_unheard(self.renewed, NOW + timedelta(seconds=21), slots=1)

    def test_with_more_slots_a_fresh_lease_may_be_on_its_way(self) -> None:
        assert not lifecycle.is_unheard(self.fresh, NOW + timedelta(seconds=1), slots=2)

    def test_with_more_slots_a_lease_that_should_have_been_renewed_was_not_heard_of(self) -> None:
        assert lifecycle.is_unheard(self.fresh, NOW + timedelta(seconds=31), slots=2)


def update(**changes: Any) -> dict[str, Any]:
    return {"digest": DIGEST, "weight": 10.0, "examples": 10} | changes


class TestSubmission:
    def refusal(self, kind: str, **body: Any) -> tuple[str, list[str]]:
        with pytest.raises(Unprocessable) as refused:
            lifecycle.check_submission(kind, SubmitRequest.model_validate(body), client_examples=10)
        return refused.value.code, [error["pointer"] for error in refused.value.errors]

    def test_a_whole_one_is_taken(self) -> None:
        body = SubmitRequest.model_validate({"update": update(), "metrics": {"train_loss": 0.5}})
        assert lifecycle.check_submission("train", body, client_examples=10) is None

    def test_an_update_does_not_answer_an_evaluate_job(self) -> None:
        assert self.refusal("evaluate", update=update()) == ("submission_kind", ["/evaluation"])

    def test_more_examples_than_were_described_are_refused(self) -> None:
        assert self.refusal("train", update=update(examples=11)) == ("too_many_examples", ["/update/examples"])

    @pytest.mark.parametrize("weight", [10.5, 2.0**53 - 1])
    def test_a_weight_above_the_examples_is_refused(self, weight: float) -> None:
        assert self.refusal("train", update=update(weight=weight)) == ("weight_too_large", ["/update/weight"])

    def test_a_metric_that_is_not_finite_is_refused_by_name(self) -> None:
        nan = float("nan")
        assert self.refusal("train", update=update(), metrics={"loss": nan}) == ("not_finite", ["/metrics/loss"])
        assert self.refusal("evaluate", evaluation={"own": {"f1": nan}}) == ("not_finite", ["/evaluation/own/f1"])

    @pytest.mark.parametrize("value", [1.7e308, -1.7e308, 1.0000001e9, -2e9])
    def test_a_metric_that_no_sum_should_hold_is_refused_by_name(self, value: float) -> None:
        assert self.refusal("train", update=update(), metrics={"loss": value}) == (
            "metric_too_large", ["/metrics/loss"],
        )  # fmt: skip
        assert self.refusal("evaluate", evaluation={"shared": {"loss": value}}) == (
            "metric_too_large", ["/evaluation/shared/loss"],
        )  # fmt: skip

    @pytest.mark.parametrize("metrics", [{"x" * 65: 1.0}, {f"m{index}": 1.0 for index in range(65)}])
    def test_metrics_are_few_and_their_names_short(self, metrics: dict[str, float]) -> None:
        for body in ({"update": update(), "metrics": metrics}, {"evaluation": {"own": metrics}}):
            with pytest.raises(ValidationError):
                SubmitRequest(**body)  # type: ignore[arg-type]

    def test_the_same_result_with_other_times_is_the_same(self) -> None:
        first = SubmitRequest.model_validate({"update": update(), "seconds": {"total": 1.0}}).model_dump(mode="json")
        again = SubmitRequest.model_validate({"update": update(), "seconds": {"total": 2.0}}).model_dump(mode="json")
        other = SubmitRequest.model_validate({"update": update(weight=9.0)}).model_dump(mode="json")
        assert lifecycle.same_content(first, again)
        assert not lifecycle.same_content(first, other)
