"""The computation of a step by the conductor, whichever step it is."""

from coordinator.rounds import conductor
from coordinator.rounds.schemas import (
    AgainInput,
    AggregateInput,
    CheckInput,
    Input,
    JoinInput,
    PlanInput,
    Result,
    ShardInput,
    StartInput,
)
from coordinator.rounds.step_messages import decode, encode, encode_error


def answer(order: bytes) -> bytes:
    """The message with what the step of another message made, or with the error that ended it."""
    try:
        return encode(_compute(decode(order)))
    except Exception as error:
        return encode_error(error)


def _compute(given: Input | AgainInput) -> Result | None:
    match given:
        case StartInput():
            return conductor.start(given)
        case PlanInput():
            return conductor.plan(given)
        case CheckInput():
            return conductor.check(given)
        case AggregateInput():
            return conductor.aggregate(given)
        case ShardInput():
            return conductor.aggregate_shard(given)
        case JoinInput():
            return conductor.join(given)
        case AgainInput():
            conductor.put_again(given)
            return None
