"""Computation of a step by the conductor, from message to message."""

from collections.abc import Callable, Mapping
from typing import Any

from coordinator.rounds import conductor
from coordinator.rounds.schemas import RestoreInput, ShardInput
from coordinator.rounds.step_messages import decode, encode, encode_error
from coordinator.rounds.steps import STEPS

FUNCTIONS: Mapping[type, Callable[[Any], Any]] = {
    **{step.input_type: getattr(conductor, step.function) for step in STEPS.values()},
    ShardInput: conductor.aggregate_shard,
    RestoreInput: conductor.restore,
}


def run_step(request: bytes) -> bytes:
    """The message with the result of the step in `request`, or with the error that ended it."""
    try:
        inputs = decode(request)
        return encode(FUNCTIONS[type(inputs)](inputs))
    except Exception as error:
        return encode_error(error)
