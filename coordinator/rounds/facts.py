"""Facts of a round: those that its life cycle decides by, as they were read, and those that name it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from coordinator.models import Round


@dataclass(frozen=True, slots=True)
class Rules:
    """What the federation's definition says of a round."""

    clients_per_round: int
    min_clients: int
    over_selection: int
    wait_for_clients_seconds: float
    max_round_retries: int


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What a round's life cycle needs to know of one of its jobs.

    `reason`: why it brought nothing, as a code and where the error came. `final`: it would fail the same way again.
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

    `accepted` and `refused` count all attempts at the round; `jobs` and `evaluations` are this attempt's. Who was
    refused is not asked again: its update was rejected or left out, or its job would fail the same way.
    `remaining`: clients that take part and were not refused, alive or not; None where nobody was refused. `asked`:
    who had a job in any attempt; `lost`: why those of them that brought nothing did not.
    `everybody`: the cohort is all clients alive. `retries`: attempts before this one that missed the quorum.
    `shards`: how many of the aggregation's are done, and how many there are; None while it is not cut.
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
        """Who may be drawn: alive, and neither accepted nor refused in this round."""
        return self.alive - self.accepted - self.ineligible


def name_of(round_: Round) -> dict[str, Any]:
    """How events name a round."""
    return {"round_id": round_.id, "kind": round_.kind, "number": round_.number, "attempt": round_.attempt}
