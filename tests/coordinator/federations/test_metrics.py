"""Validation of metrics and stopping rules: unknown metrics, and rules that could never apply."""

from typing import Any

import pytest

from tests.support.federation_rig import FederationRig, definition
from tests.support.service import created, problem

PERSONAL = {
    "algorithm": "fedpeptao",
    "config": {},
    "trainable": {"kind": "prefix", "num_virtual_tokens": 2},
}
EVERY = {"evaluation": {"every": 1}}


@pytest.mark.parametrize(
    ("changes", "code", "pointer", "told"),
    [
        (
            {"stopping": {"metric": "accurracy", "patience": 1}},
            "stopping_metric_unknown",
            "/stopping/metric",
            "available: loss, accuracy",
        ),
        (
            {"stopping": {"metric": "own_loss", "target": 1}},
            "stopping_metric_unknown",
            "/stopping/metric",
            "available: loss, accuracy",
        ),
        (
            {"stopping": {"metric": "own_f1", "target": 1}, **PERSONAL},
            "stopping_metric_unknown",
            "/stopping/metric",
            "available: loss, accuracy, own_loss, own_accuracy",
        ),
        (
            {"stopping": {"metric": "f1", "target": 1}, "task": {"task": "causal_lm"}},
            "stopping_metric_unknown",
            "/stopping/metric",
            "available: loss, accuracy",
        ),
        (
            {"task": {"task": "causal_lm", "metrics": ["accuracy", "f1"]}},
            "metric_undefined",
            "/task/metrics/1",
            "a causal_lm has no f1",
        ),
        (
            {"stopping": {"metric": "accuracy", "patience": 1}, "evaluation": {"every": None}},
            "stopping_without_evaluation",
            "/stopping/metric",
            "evaluation.every is null",
        ),
        ({"stopping": {"metric": "accuracy"}}, "stopping_incomplete", "/stopping", "set target or patience"),
    ],
)
def test_a_metric_that_cannot_come_is_refused_where_it_stands(
    rig: FederationRig, changes: dict[str, Any], code: str, pointer: str, told: str
) -> None:
    answer = rig.owner.owner.post("/v1/federations", json=definition(**EVERY | changes))
    (error,) = problem(answer, 422, code)["errors"]
    assert (error["pointer"], told in error["detail"]) == (pointer, True), error


@pytest.mark.parametrize(
    "changes",
    [
        {"stopping": {"metric": "loss", "patience": 2}},
        {"stopping": {"metric": "own_accuracy", "target": 0.9}, **PERSONAL},
        {"stopping": {"metric": "accuracy", "target": 0.9}, "task": {"task": "causal_lm"}},
    ],
)
def test_a_metric_that_can_come_is_taken(rig: FederationRig, changes: dict[str, Any]) -> None:
    created(rig.owner.owner.post("/v1/federations", json=definition(**EVERY | changes)))


def test_a_change_of_a_draft_is_held_against_the_rest_of_it(rig: FederationRig) -> None:
    rig.create(**EVERY, stopping={"metric": "accuracy", "patience": 1})
    never = rig.owner.owner.patch(rig.path(), json={"evaluation": {"every": None}}, headers={"If-Match": "*"})
    problem(never, 422, "stopping_without_evaluation")
