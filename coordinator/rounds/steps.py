"""Table of the steps that need tensors: the inputs, the conductor's function and the recorder of each.

The conductor's function is given by name. Importing it would import torch, and only the processes that compute steps
have torch. For the same reason the labels, which the web process shows, are attributes of the step classes in
`lifecycle`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from coordinator.rounds.lifecycle import Aggregate, Check, ConductorStep, Evaluate, Join, Plan, Start
from coordinator.rounds.schemas import AggregateInput, CheckInput, Input, JoinInput, PlanInput, Result, StartInput
from coordinator.rounds.service import Claim, StepContext, claims, inputs, results


@dataclass(frozen=True, slots=True)
class StepDefinition:
    """One row: `load` reads the input, the conductor's `function` computes, `record` writes the result."""

    input_type: type[Input]
    load: Callable[[StepContext, Any], Input]
    function: str
    record: Callable[[StepContext, Claim, Any], None]


STEPS: Mapping[type[ConductorStep], StepDefinition] = {
    Start: StepDefinition(StartInput, inputs.for_start, "start", results.record_start),
    Plan: StepDefinition(PlanInput, inputs.for_plan, "plan", results.record_plan),
    Check: StepDefinition(CheckInput, inputs.for_check, "check", results.record_verdicts),
    Aggregate: StepDefinition(AggregateInput, inputs.for_aggregate, "aggregate", results.record_aggregate),
    Join: StepDefinition(JoinInput, inputs.for_join, "join", results.record_aggregate),
    Evaluate: StepDefinition(PlanInput, inputs.for_evaluate, "plan", results.record_evaluation),
}


def claim(session: Session, round_id: str, now: datetime) -> Claim | None:
    """Applies all steps that need no tensors, then claims the one that does. None: nothing to do, or not now."""
    return claims.claim(session, round_id, _load, now)


def record(session: Session, claim: Claim, result: Result, now: datetime) -> bool:
    """Writes the result of a claimed step. False, and nothing is written, if the round has moved on since."""
    return results.record(session, claim, result, STEPS[type(claim.step)].record, now)


def _load(context: StepContext, step: ConductorStep) -> Input:
    return STEPS[type(step)].load(context, step)
