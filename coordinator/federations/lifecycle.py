"""Life cycle of a federation: transitions, the next step, and the check of workers. Pure functions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal, get_args

from pydantic import TypeAdapter

from coordinator.errors import Conflict
from federated import registry
from federated.protocol import Capabilities
from federated.trainable import ModelFacts, Trainable, first_difference

State = Literal["draft", "running", "paused", "completed", "failed", "cancelled"]
Event = Literal["start", "pause", "resume", "cancel", "complete", "fail"]

MOVES: Final[Mapping[tuple[State, Event], State]] = {
    ("draft", "start"): "running",
    ("draft", "cancel"): "cancelled",
    ("running", "pause"): "paused",
    ("running", "cancel"): "cancelled",
    ("running", "complete"): "completed",
    ("running", "fail"): "failed",
    ("paused", "resume"): "running",
    ("paused", "cancel"): "cancelled",
    ("paused", "complete"): "completed",
    ("paused", "fail"): "failed",
}
STATES: Final = get_args(State)
EVENTS: Final = get_args(Event)
END_STATES: Final = ("completed", "failed", "cancelled")
ACTIVE: Final = ("running", "paused")
MAX_PER_TURN: Final = 50
"""Most federations that the reconciler reads in one turn, so that its cost does not grow with the database."""
_TRAINABLE: Final[TypeAdapter[Trainable]] = TypeAdapter(Trainable)


def in_turn(ids: Sequence[str], turn: int) -> Sequence[str]:
    """The ids of this turn, at most `MAX_PER_TURN`. Consecutive turns cover every id once."""
    turns = max(1, -(-len(ids) // MAX_PER_TURN))
    return ids[turn % turns :: turns]


def move(state: str, event: Event) -> State:
    """The state after `event`. Raises Conflict."""
    for (before, name), after in MOVES.items():
        if (before, name) == (state, event):
            return after
    raise Conflict("federation_state", f"A federation that is {state} has no move {event}.")


@dataclass(frozen=True, slots=True)
class NewestRound:
    """The newest round. `end_reason`: why the algorithm ends training, if it does."""

    state: str
    reason: str | None
    reason_detail: str | None
    end_reason: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State of a federation, as read from the database.

    `clients`: training clients, of which `ready` are described. `describing`: their describe jobs in progress on
    workers that are alive. `submitted_ids`: describe jobs to judge. `undescribed_ids`: clients without a describe
    job. `stop`: why no further train round follows; `stop_detail`: an explanation for the owner.
    """

    state: str
    facts_known: bool
    clients: int
    ready: int
    describing: int
    submitted_ids: tuple[str, ...]
    undescribed_ids: tuple[str, ...]
    newest: NewestRound | None
    stop: str | None
    waiting_since: datetime
    wait_for_clients_seconds: float
    min_clients: int
    stop_detail: str | None = None


@dataclass(frozen=True, slots=True)
class Judge:
    """Accept or reject these descriptions, in this order."""

    job_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Describe:
    """Offer describe jobs to these clients."""

    client_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OpenRound:
    """Open the first round, the next one, or another attempt at a withdrawn one."""


@dataclass(frozen=True, slots=True)
class Complete:
    """End the federation as completed."""

    reason: str
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Fail:
    """End the federation as failed."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before `until` unless the state changes. `what` is None if the open round reports it."""

    until: datetime | None
    what: str | None


Step = Judge | Describe | OpenRound | Complete | Fail | Wait


def next_step(snapshot: Snapshot, now: datetime) -> Step:
    """The next step of a running or paused federation. Raises Conflict for any other state."""
    if snapshot.state not in ACTIVE:
        raise Conflict("federation_state", f"The federation is {snapshot.state}; nothing follows.")
    if snapshot.submitted_ids:
        return Judge(snapshot.submitted_ids)
    if snapshot.undescribed_ids:
        return Describe(snapshot.undescribed_ids)
    if snapshot.newest is not None:
        return _after(snapshot, snapshot.newest)
    if snapshot.state == "paused":
        return Wait(None, "paused")
    return _before_the_first_round(snapshot, now)


def _after(snapshot: Snapshot, newest: NewestRound) -> Step:
    if newest.state == "failed":
        return Fail(newest.reason or "round_failed", newest.reason_detail or "")
    if newest.state == "closed" and newest.end_reason is not None:
        return Complete(newest.end_reason)
    if newest.state == "closed" and snapshot.stop is not None:
        return Complete(f"stopped_{snapshot.stop}", snapshot.stop_detail)
    if newest.state not in ("closed", "withdrawn"):
        return Wait(None, None)
    return Wait(None, "paused") if snapshot.state == "paused" else OpenRound()


def _before_the_first_round(snapshot: Snapshot, now: datetime) -> Step:
    """Waits until all live clients are described, so that the first cohort does not depend on their speed."""
    until = snapshot.waiting_since + timedelta(seconds=snapshot.wait_for_clients_seconds)
    if now >= until:
        if snapshot.facts_known:
            return OpenRound()
        seconds, count = snapshot.wait_for_clients_seconds, snapshot.clients
        detail = f"No client was described within {seconds:g} s; {count} are registered."
        return Fail("not_enough_clients", detail)
    left = f"{math.ceil((until - now).total_seconds())} s left"
    if snapshot.describing:
        return Wait(until, f"describing {snapshot.ready}/{snapshot.clients}, {left}")
    if snapshot.facts_known:
        return OpenRound()
    return Wait(until, f"waiting_for_clients 0/{snapshot.min_clients}, {left}")


def mismatch(ours: ModelFacts | None, theirs: ModelFacts, weights_sha256: str | None) -> str | None:
    """The first field or tensor in which a client's model differs from the federation's; None if it does not."""
    if weights_sha256 is not None and theirs.weights_digest != f"sha256:{weights_sha256}":
        requirement = f"the federation requires sha256:{weights_sha256}"
        return f"weights_digest: {requirement}, this client has {theirs.weights_digest}"
    different = None if ours is None else first_difference(ours, theirs)
    return None if different is None else f"{different}: differs from the federation's model"


def incompatibility(definition: Mapping[str, Any], capabilities: Capabilities, dataset: str) -> str | None:
    """The reason that a worker cannot run the federation with this data set; None if it can."""
    name, revision = definition["algorithm"], definition["algorithm_revision"]
    has = capabilities.algorithms.get(name)
    if has != revision:
        return f"algorithm {name}: revision {revision} is required, the worker has {has or 'none'}"
    rank = _requested_rank(definition, capabilities.max_rank)
    if capabilities.max_rank is not None and rank > capabilities.max_rank:
        return f"trainable: rank {rank} is required, the worker allows at most {capabilities.max_rank}"
    if dataset not in {facts.name for facts in capabilities.datasets}:
        return f"data set {dataset!r}: the worker no longer offers it"
    model = definition["base_model"]["id"]
    if capabilities.models and model not in capabilities.models:
        return f"base model {model!r}: the worker does not offer it"
    return None


def _requested_rank(definition: Mapping[str, Any], limit: int | None) -> int:
    """Largest rank that the algorithm requests from a worker with the rank limit `limit`."""
    config = registry.make_config(definition["algorithm"], definition["config"])
    return config.largest_rank(_TRAINABLE.validate_python(definition["trainable"]), limit)
