"""Facts of a round: the snapshot for its life cycle, and the fields that name it in events."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from coordinator.models import Round


@dataclass(frozen=True, slots=True)
class Rules:
    """The part of the federation's definition that a round's life cycle needs."""

    clients_per_round: int
    min_clients: int
    over_selection: int
    wait_for_clients_seconds: float
    max_round_retries: int


@dataclass(frozen=True, slots=True)
class JobFacts:
    """The facts of one job that a round's life cycle needs.

    `reason`: the code of its loss, with the place of an error. `final`: it would fail the same way again.
    """

    id: str
    ordinal: int
    state: str
    submitted_number: int | None = None
    submitted_at: datetime | None = None
    norm: float | None = None
    left_out: bool = False
    reason: str | None = None
    final: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A round as it was read. Clients are ordinals.

    `accepted`, `ineligible`, `participants` and `losses` cover all attempts at the round, `jobs` and `evaluations`
    this one.
    `ineligible`: clients whose update was rejected or left out, or whose job would fail the same way again.
    `remaining`: clients that take part and are not ineligible, alive or not. None if nobody is ineligible.
    `participants`: clients that had a job. `losses`: the reasons of those without an accepted update.
    `everybody`: the cohort is all clients alive. `retries`: earlier attempts that missed the quorum.
    `shards`: the numbers of shards done and in all. None if the aggregation has no shards.
    """

    state: str
    everybody: bool
    has_start: bool
    has_plan: bool
    has_result: bool
    evaluation_due: bool
    evaluation_planned: bool
    opened_at: datetime
    deadline_at: datetime | None
    evaluation_deadline_at: datetime | None
    alive: frozenset[int]
    accepted: frozenset[int]
    ineligible: frozenset[int]
    cohort: tuple[int, ...]
    jobs: tuple[JobFacts, ...]
    evaluations: tuple[JobFacts, ...]
    retries: int
    shards: tuple[int, int] | None = None
    outliers: tuple[int, ...] = ()
    remaining: frozenset[int] | None = None
    participants: frozenset[int] = frozenset()
    losses: Mapping[int, str] = field(default_factory=dict)

    @property
    def eligible(self) -> frozenset[int]:
        """Clients that may be drawn: alive, and neither accepted nor ineligible."""
        return self.alive - self.accepted - self.ineligible


def name_of(round_: Round) -> dict[str, Any]:
    """The fields that name a round in events."""
    return {"round_id": round_.id, "kind": round_.kind, "number": round_.number, "attempt": round_.attempt}
