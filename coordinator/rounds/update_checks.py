"""Checks of updates by their tensors: one by one, and as the parts of a failed aggregation."""

import tempfile
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from coordinator.artifacts import service as artifacts
from coordinator.errors import Unprocessable
from coordinator.rounds import statistics
from coordinator.rounds.schemas import AggregateInput, Omission
from federated.algorithm_kit.number_checks import NumbersRefused, inspected_norm
from federated.contract import ServerHalf, UpdateRefused
from federated.payloads.header import HeaderError
from federated.payloads.payload import Payload

# Errors that an algorithm raises because of numbers. Errors of the disk and of this coordinator are not among them.
FAILURES = (ArithmeticError, ValueError, RuntimeError)


def norm_or_problem(
    half: ServerHalf, instruction: str, update: str, max_norm: float | None
) -> float | dict[str, Any]:
    """The norm of a valid update, or the problem document of an invalid one."""
    try:
        request, payload = (Payload.open(artifacts.whole_file(digest)) for digest in (instruction, update))
        norm = inspected_norm(request.facts["expects"], payload, max_norm)
        half.check(request, payload)
    except NumbersRefused as refused:
        return Unprocessable(refused.code, str(refused), tensor=refused.tensor).problem()
    except HeaderError as error:
        return Unprocessable("update_unreadable", str(error), tensor=error.tensor).problem()
    except UpdateRefused as refusal:
        detail = f"The algorithm refuses it: {refusal}."
        return Unprocessable("update_refused", detail, tensor=refusal.tensor).problem()
    return norm


def differs(name: str) -> dict[str, Any]:
    """The problem document for base values that differ from those of most clients."""
    detail = f"Tensor {name!r} is not as most clients of the round have it."
    return Unprocessable("base_differs", detail, tensor=name).problem()


def omission(
    inputs: AggregateInput, folder: Path, error: Exception, attempt: Callable[[AggregateInput, Path], None]
) -> Omission:
    """The updates without which `attempt` does not fail. Raises its `error` again if it is not due to updates."""

    def works(left_out: Collection[int]) -> bool:
        rest = tuple(update for update in inputs.updates if update.ordinal not in left_out)
        with tempfile.TemporaryDirectory(dir=folder) as trial, suppress(*FAILURES):
            attempt(replace(inputs, updates=rest), Path(trial))
            return True
        return False

    ordinals = statistics.omission({update.ordinal: update.norm for update in inputs.updates}, works)
    if ordinals is None:
        raise error
    problem = Unprocessable("not_finite", "With this update the round's updates give no finite state.").problem()
    return Omission(dict.fromkeys(ordinals, problem))
