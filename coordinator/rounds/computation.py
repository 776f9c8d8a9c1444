"""The computation of a step by the conductor, whichever step it is."""

from coordinator.rounds import conductor
from coordinator.rounds.schemas import (
    AggregateInput,
    CheckInput,
    Input,
    JoinInput,
    PlanInput,
    RestoreInput,
    Result,
    ShardInput,
    StartInput,
)
from coordinator.rounds.step_messages import decode, encode, encode_error


def run_step(order: bytes) -> bytes:
    """The message with what the step of another message made, or with the error that ended it."""
    try:
        return encode(_run(decode(order)))
    except Exception as error:
        return encode_error(error)


def _run(inputs: Input | RestoreInput) -> Result | None:
    match inputs:
        case StartInput():
            return conductor.start(inputs)
        case PlanInput():
            return conductor.plan(inputs)
        case CheckInput():
            return conductor.check(inputs)
        case AggregateInput():
            return conductor.aggregate(inputs)
        case ShardInput():
            return conductor.aggregate_shard(inputs)
        case JoinInput():
            return conductor.join(inputs)
        case RestoreInput():
            conductor.restore(inputs)
            return None
