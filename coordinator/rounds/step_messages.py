"""Messages between a background process and the processes that compute its steps, in JSON and with errors."""

import json
import traceback
from typing import Any, get_args

from pydantic import TypeAdapter

from coordinator import errors
from coordinator.errors import ArtifactDamaged, CoordinatorError
from coordinator.rounds.schemas import Input, RestoreInput, Result
from federated.contract import FederationRefused
from federated.failures import type_name

_TRACE_CHARACTERS = 20_000
_TYPES = (*get_args(Input), RestoreInput, *get_args(Result))
_VALUES: dict[str, TypeAdapter[Any]] = {kind.__name__: TypeAdapter(kind) for kind in _TYPES}
_ERRORS = {kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type)}


class StepError(Exception):
    """An error of the algorithm, by the name of its type. `trace` is for the coordinator's log only."""

    def __init__(self, name: str, trace: str) -> None:
        super().__init__(name)
        self.name = name
        self.trace = trace


def encode(value: Input | RestoreInput | Result | None) -> bytes:
    """The message with an input, or with a result."""
    if value is None:
        return json.dumps(["nothing", None]).encode()
    name = type(value).__name__
    return json.dumps([name, _VALUES[name].dump_python(value)]).encode()


def encode_error(error: Exception) -> bytes:
    """The message with the error that ended a step."""
    match error:
        case ArtifactDamaged():
            return json.dumps(["damaged", error.digest]).encode()
        case CoordinatorError():
            kind = next(base.__name__ for base in type(error).__mro__ if base.__name__ in _ERRORS)
            fields = [kind, error.code, error.detail]
            return json.dumps(["error", fields]).encode()
        case OSError():
            return json.dumps(["disk", str(error)]).encode()
        case FederationRefused():
            return json.dumps(["refused", str(error)]).encode()
    trace = "".join(traceback.format_exception(error))[-_TRACE_CHARACTERS:]
    return json.dumps(["broke", [type_name(error), trace]]).encode()


def decode(message: bytes) -> Any:
    """The value of a message.

    Raises the error that it carries: ArtifactDamaged, CoordinatorError, OSError, FederationRefused or StepError.
    """
    name, value = json.loads(message)
    match name:
        case "nothing":
            return None
        case "damaged":
            raise ArtifactDamaged(value)
        case "error":
            kind, code, detail = value
            raise _ERRORS[kind](code, detail)
        case "disk":
            raise OSError(value)
        case "refused":
            raise FederationRefused(value)
        case "broke":
            raise StepError(*value)
    return _VALUES[name].validate_python(value)
