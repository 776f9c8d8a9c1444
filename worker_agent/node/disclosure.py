"""Disclosure of failures: the one place that decides what leaves this node about one.

That is a code, facts without content, and a reference. The full text goes to this node's log under the reference, and
nowhere else.
"""

import re
import secrets
from pathlib import Path

import structlog
from pydantic import ValidationError

from federated.failures import CODE_PATTERN, REFERENCE_DIGITS, type_name
from federated.protocol import FailureFacts

_PACKAGES = ("federated", "worker_agent")
_ROOT = Path(__file__).resolve().parents[2]
_CODE = re.compile(CODE_PATTERN)
_MAX_MODULE_NAME = 128

_log = structlog.get_logger(__name__)


def disclose(
    event: str, code: str, detail: str, facts: FailureFacts | None = None, dataset: str | None = None, **where: str
) -> FailureFacts:
    """Log the failure as `event`, and return the facts that may be disclosed."""
    reference = secrets.token_hex(REFERENCE_DIGITS // 2)
    _log.warning(event, code=code, reason=detail, reference=reference, dataset=dataset, **where)
    outside = (facts or FailureFacts()).model_copy(update={"reference": reference})
    try:
        return outside.model_validate(outside.model_dump() | {"dataset": dataset})
    except ValidationError:
        # No data set of this node has such a name. The coordinator sent the name, so it knows it.
        return outside


def stable_code(code: str) -> str:
    """The code if it is valid, else the general one."""
    return code if _CODE.fullmatch(code) else "job_declined"


def whereabouts(error: BaseException) -> FailureFacts:
    """The type of an exception and the last line of Fedloom's code in its traceback, without its text."""
    return FailureFacts(error=type_name(error), place=_place(error))


def _place(error: BaseException) -> str | None:
    place, trace = None, error.__traceback__
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        file = Path(trace.tb_frame.f_code.co_filename)
        if name.partition(".")[0] in _PACKAGES and file.is_relative_to(_ROOT) and len(name) < _MAX_MODULE_NAME:
            place = f"{name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
