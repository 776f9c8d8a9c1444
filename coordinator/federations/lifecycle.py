"""The moves of a federation, what comes next in it, and what a worker must have to take part. Pure functions."""

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
ENDED: Final = ("completed", "failed", "cancelled")
ACTIVE: Final = ("running", "paused")
LOOKED_AT: Final = 50
"""Federations that the reconciler looks at in one turn: what it costs must not grow with what the service holds."""
_TRAINABLE: Final[TypeAdapter[Trainable]] = TypeAdapter(Trainable)


def in_turn(ids: Sequence[str], turn: int) -> Sequence[str]:
    """At most `LOOKED_AT` of them; in as many turns as it takes, each of them once."""
    turns = max(1, -(-len(ids) // LOOKED_AT))
    return ids[turn % turns :: turns]


def move(state: str, event: Event) -> State:
    """The state after `event`. Raises Conflict."""
    for (before, name), after in MOVES.items():
        if (before, name) == (state, event):
            return after
    raise Conflict("federation_state", f"A federation that is {state} has no move {event}.")


@dataclass(frozen=True, slots=True)
class NewestRound:
    """The round that was opened last. `finished` is the algorithm's own reason to end."""

    state: str
    reason: str | None
    reason_detail: str | None
    finished: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A federation as it was read.

    `clients` can be drawn or will be once they are described, `described` of them are. `describing`: describe jobs
    under way on workers that are alive. `described_ids` and `undescribed_ids`: submitted jobs to judge, clients to
    ask. `stop`: why no further train round is to follow; `stop_detail`: what is to be told with it.
    """

    state: str
    facts_known: bool
    clients: int
    described: int
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
    """Accept or refuse these descriptions, in this order."""

    job_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Describe:
    """Ask these clients to describe what they have."""

    client_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OpenRound:
    """The first round, the next one, or another attempt at one that was withdrawn."""


@dataclass(frozen=True, slots=True)
class Complete:
    """The federation has what it wanted, or all that it will have."""

    reason: str
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Fail:
    """The federation cannot go on."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before `until`, unless something happens. `what` is None where the open round says it."""

    until: datetime | None
    what: str | None


Step = Judge | Describe | OpenRound | Complete | Fail | Wait


def next_step(seen: Snapshot, now: datetime) -> Step:
    """What to do next in a federation that runs or is paused. Raises Conflict for any other."""
    if seen.state not in ACTIVE:
        raise Conflict("federation_state", f"The federation is {seen.state}; nothing follows.")
    if seen.submitted_ids:
        return Judge(seen.submitted_ids)
    if seen.undescribed_ids:
        return Describe(seen.undescribed_ids)
    if seen.newest is not None:
        return _after(seen, seen.newest)
    if seen.state == "paused":
        return Wait(None, "paused")
    return _before_the_first_round(seen, now)


def _after(seen: Snapshot, newest: NewestRound) -> Step:
    if newest.state == "failed":
        return Fail(newest.reason or "round_failed", newest.reason_detail or "")
    if newest.state == "closed" and newest.finished is not None:
        return Complete(newest.finished)
    if newest.state == "closed" and seen.stop is not None:
        return Complete(f"stopped_{seen.stop}", seen.stop_detail)
    if newest.state not in ("closed", "withdrawn"):
        return Wait(None, None)
    return Wait(None, "paused") if seen.state == "paused" else OpenRound()


def _before_the_first_round(seen: Snapshot, now: datetime) -> Step:
    """The first cohort is drawn when all who are there are described, so that it does not hang on their speed."""
    until = seen.waiting_since + timedelta(seconds=seen.wait_for_clients_seconds)
    if now >= until:
        if seen.facts_known:
            return OpenRound()
        detail = f"No client was described within {seen.wait_for_clients_seconds:g} s; {seen.clients} are registered."
        return Fail("not_enough_clients", detail)
    left = f"{math.ceil((until - now).total_seconds())} s left"
    if seen.describing:
        return Wait(until, f"describing {seen.described}/{seen.clients}, {left}")
    if seen.facts_known:
        return OpenRound()
    return Wait(until, f"waiting_for_clients 0/{seen.min_clients}, {left}")


def mismatch(ours: ModelFacts | None, theirs: ModelFacts, weights_sha256: str | None) -> str | None:
    """Why a client's model is not the federation's, naming the first field or tensor that differs; None if it is."""
    if weights_sha256 is not None and theirs.weights_digest != f"sha256:{weights_sha256}":
        return (
            f"weights_digest: the federation wants sha256:{weights_sha256}, this client has {theirs.weights_digest}"
        )
    different = None if ours is None else first_difference(ours, theirs)
    return None if different is None else f"{different}: differs from the federation's model"


def unable(definition: Mapping[str, Any], capabilities: Capabilities, dataset: str) -> str | None:
    """Why a worker could not run the federation with this data set, or None."""
    name, revision = definition["algorithm"], definition["algorithm_revision"]
    has = capabilities.algorithms.get(name)
    if has != revision:
        return f"algorithm {name}: revision {revision} is wanted, the worker has {has or 'none'}"
    rank = _rank_asked(definition, capabilities.max_rank)
    if capabilities.max_rank is not None and rank > capabilities.max_rank:
        return f"trainable: rank {rank} is wanted, the worker allows {capabilities.max_rank}"
    if dataset not in {facts.name for facts in capabilities.datasets}:
        return f"data set {dataset!r}: the worker offers it no more"
    model = definition["base_model"]["id"]
    if capabilities.models and model not in capabilities.models:
        return f"base model {model!r}: the worker does not offer it"
    return None


def _rank_asked(definition: Mapping[str, Any], limit: int | None) -> int:
    """The rank that the federation's algorithm would ask of a worker that allows `limit`."""
    config = registry.make_config(definition["algorithm"], definition["config"])
    return config.largest_rank(_TRAINABLE.validate_python(definition["trainable"]), limit)
