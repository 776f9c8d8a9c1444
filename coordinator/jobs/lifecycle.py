"""Life cycle of a job: a table of its moves, and the checks of a submission, as pure functions."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal, get_args

from coordinator.errors import Conflict, FieldError, Unprocessable
from federated.protocol import MAX_METRIC, SubmitRequest, UpdateSubmission, is_metric
from federated.trainable import ModelFacts

State = Literal[
    "offered", "leased", "submitted", "accepted", "rejected", "failed", "declined", "expired", "withdrawn"
]
Event = Literal[
    "lease",
    "renew",
    "hand_back",
    "retry",
    "submit",
    "accept",
    "reject",
    "fail",
    "decline",
    "expire",
    "withdraw",
    "lose",
]

MOVES: Final[Mapping[tuple[State, Event], State]] = {
    ("offered", "lease"): "leased",
    ("offered", "submit"): "submitted",  # finished while its lease was lost
    ("offered", "withdraw"): "withdrawn",
    ("leased", "renew"): "leased",
    ("leased", "hand_back"): "offered",
    ("leased", "retry"): "offered",
    ("leased", "submit"): "submitted",
    ("leased", "fail"): "failed",
    ("leased", "decline"): "declined",
    ("leased", "expire"): "expired",
    ("leased", "withdraw"): "withdrawn",
    ("submitted", "accept"): "accepted",
    ("submitted", "reject"): "rejected",
    ("submitted", "withdraw"): "withdrawn",
    ("submitted", "lose"): "offered",  # its update was damaged in the store
    ("accepted", "lose"): "failed",
}
STATES: Final = get_args(State)
EVENTS: Final = get_args(Event)
OPEN: Final = ("offered", "leased", "submitted")
BODY: Final[Mapping[str, str]] = {"describe": "description", "train": "update", "evaluate": "evaluation"}
TAKES_RESULTS: Final[Mapping[str, tuple[str, ...]]] = {
    "train": ("waiting", "collecting"),
    "evaluate": ("evaluating",),
}
CLIENT_GONE: Final = "client_gone"
UNFORESEEN: Final = "training_failed"
"""The code of an unforeseen error in a training process. Agents report it as transient."""
_MAX_BYTES: Final = 2**46
_MAX_SECONDS: Final = 1e9


def move(state: str, event: Event) -> State:
    """The state after `event`. Raises Conflict."""
    for (before, name), after in MOVES.items():
        if (before, name) == (state, event):
            return after
    raise Conflict("illegal_transition", f"A job that is {state} has no move {event}.")


def after_loss(attempt: int, max_attempts: int, worker_alive: bool) -> Event:
    """The event after a lost lease: a retry while the worker is alive and attempts are left."""
    return "retry" if worker_alive and attempt < max_attempts else "expire"


def after_failure(transient: bool, attempt: int, max_attempts: int, worker_alive: bool) -> Event:
    """The event after a reported failure."""
    return "retry" if transient and worker_alive and attempt < max_attempts else "fail"


def is_repeated(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    """True if an attempt ended with the same unforeseen error at the same place in the code as the one before."""
    if before is None or now["code"] != UNFORESEEN or None in (now.get("error"), now.get("place")):
        return False
    return all(before.get(name) == now[name] for name in ("code", "error", "place"))


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Start and end of a lease, and the seconds by which each renewal extends it."""

    leased_at: datetime | None
    expires_at: datetime | None
    lease_seconds: float


def was_renewed(lease: LeaseTimes) -> bool:
    """True if the lease was renewed since it was taken, so that its worker knows of it."""
    if lease.leased_at is None or lease.expires_at is None:
        return False
    return lease.expires_at > lease.leased_at + timedelta(seconds=lease.lease_seconds)


def is_unheard(lease: LeaseTimes, now: datetime, slots: int) -> bool:
    """True if a worker that holds `slots` leases and asks for another does not know of this one.

    With one slot that is any lease it never renewed. With more, it is one that it should have renewed by now.
    """
    if lease.leased_at is None or lease.expires_at is None:
        return True
    length = timedelta(seconds=lease.lease_seconds)
    return now > lease.expires_at - length / 2 or (slots == 1 and not was_renewed(lease))


def takes_results(kind: str, round_state: str | None, federation_state: str) -> bool:
    """True if a job's result is still wanted. A describe job has no round (`round_state` None)."""
    if kind == "describe":
        return federation_state in ("running", "paused")
    return round_state in TAKES_RESULTS[kind]


def same_content(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """True if two submissions bring the same result. Times, traffic and the signing key may differ."""
    return all(_without_signature(earlier.get(name)) == _without_signature(now.get(name)) for name in BODY.values())


def _without_signature(result: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return {name: value for name, value in (result or {}).items() if name != "signature"}


def check_submission(kind: str, request: SubmitRequest, client_examples: int | None) -> None:
    """Raises Unprocessable unless the submission fits the job, with finite and consistent numbers."""
    body = BODY[kind]
    if getattr(request, body) is None:
        raise refusal("submission_kind", f"/{body}", f"a {kind} job is submitted with `{body}`")
    for pointer, number in _numbers(request):
        if not math.isfinite(number):
            raise refusal("not_finite", pointer, f"is {number}, not a finite number")
    for pointer, number in _metrics(request):
        if not is_metric(number):
            raise refusal("metric_too_large", pointer, f"is {number:g}, at most {MAX_METRIC:g} in size is allowed")
    _check_amounts(request)
    if request.update is not None:
        _check_update(request.update, client_examples or 0)


def check_size(model: ModelFacts, max_bytes: int) -> None:
    """Raises Unprocessable, which names the tensor beyond the limit, unless a state of this model fits."""
    size_bytes = 0
    for field in ("tensors", "seeded"):
        for index, tensor in enumerate(getattr(model, field)):
            size_bytes += tensor.size_bytes
            if size_bytes > max_bytes:
                detail = f"with this tensor a state has more than the {max_bytes} bytes that this coordinator allows"
                raise refusal("model_too_large", f"/description/model/{field}/{index}/shape", detail, tensor.name)


def _check_amounts(request: SubmitRequest) -> None:
    """Raises Unprocessable for amounts whose sums in rounds and ledgers could exceed a database's numbers."""
    for name in ("download_bytes", "upload_bytes"):
        if getattr(request, name) > _MAX_BYTES:
            raise refusal("too_many_bytes", f"/{name}", f"is more than {_MAX_BYTES}")
    for name, seconds in request.seconds.items():
        if not 0 <= seconds <= _MAX_SECONDS:
            raise refusal("seconds_out_of_range", f"/seconds/{name}", f"is {seconds:g}, not 0 to {_MAX_SECONDS:g}")


def _check_update(update: UpdateSubmission, client_examples: int) -> None:
    if update.examples > client_examples:
        detail = f"is {update.examples}; this client described {client_examples} examples"
        raise refusal("too_many_examples", "/update/examples", detail)
    if not update.weight <= update.examples:
        detail = f"is {update.weight:g}, more than the {update.examples} examples"
        raise refusal("weight_too_large", "/update/weight", detail)


def _numbers(request: SubmitRequest) -> Iterator[tuple[str, float]]:
    yield from _metrics(request)
    yield from ((f"/seconds/{name}", value) for name, value in request.seconds.items())


def _metrics(request: SubmitRequest) -> Iterator[tuple[str, float]]:
    yield from ((f"/metrics/{name}", value) for name, value in request.metrics.items())
    for view, metrics in (request.evaluation or {}).items():
        yield from ((f"/evaluation/{view}/{name}", value) for name, value in metrics.items())


def refusal(code: str, pointer: str, detail: str, tensor: str | None = None) -> Unprocessable:
    """The error for one invalid field of a submission."""
    field = FieldError(pointer=pointer, detail=detail)
    return Unprocessable(code, f"`{pointer}` {detail}.", errors=[field], tensor=tensor)
