"""Reads a round into a `lifecycle.Snapshot`, and says what comes next."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from coordinator.clients import service as clients
from coordinator.jobs import service as jobs
from coordinator.models import Federation, Job, Round
from coordinator.rounds import lifecycle, repository
from coordinator.rounds.lifecycle import JobFacts, Rules, Snapshot, Step
from federated import schedule


def next_step(session: Session, federation: Federation, round_: Round, now: datetime) -> Step:
    """What comes next in the round, of what the tables say now. Raises Conflict if it has ended."""
    return lifecycle.next_step(snapshot(session, federation, round_, now), rules(federation), now)


def rules(federation: Federation) -> Rules:
    """The part of the definition that a round's life cycle needs."""
    names = ("clients_per_round", "min_clients", "over_selection", "wait_for_clients_seconds", "max_round_retries")
    return Rules(**{name: federation.definition[name] for name in names})


def snapshot(session: Session, federation: Federation, round_: Round, now: datetime) -> Snapshot:
    """The round as the tables show it."""
    alive = clients.alive_ordinals(session, federation.id, now) if round_.state == lifecycle.WAITING else {}
    attempts = repository.attempts(session, federation.id, round_.kind, round_.number)
    earlier = [row for row in attempts if row.attempt < round_.attempt]
    own = train_jobs(session, [round_])
    every = train_jobs(session, earlier) + own
    ordinals = ordinals_of(session, every)
    return Snapshot(
        state=round_.state,
        everybody=round_.everybody,
        started=round_.start_digest is not None,
        planned=round_.planned,
        aggregated=round_.state_digest is not None,
        evaluation_due=evaluation_due(federation, round_),
        evaluation_planned=round_.evaluation_planned,
        opened_at=round_.opened_at,
        deadline_at=round_.deadline_at,
        evaluation_deadline_at=round_.evaluation_deadline_at,
        alive=frozenset(alive),
        accepted=frozenset(ordinals[job.client_id] for job in every if job.state == "accepted"),
        refused=frozenset(ordinals[job.client_id] for job in every if job.state == "rejected"),
        cohort=tuple(round_.cohort or ()),
        jobs=_facts(own, ordinals),
        evaluations=_evaluations(session, round_),
        retries=sum(row.reason == lifecycle.QUORUM_MISSED for row in earlier),
        shards=_shards(session, round_),
    )


def train_jobs(session: Session, rounds: Sequence[Round]) -> list[Job]:
    """The train jobs of these attempts."""
    return [job for row in rounds for job in jobs.of_round(session, row.id, "train")]


def accepted_jobs(session: Session, round_: Round) -> list[tuple[int, Job]]:
    """Ordinal and job of every accepted update of the round, those of earlier attempts included, by ordinal."""
    attempts = repository.attempts(session, round_.federation_id, round_.kind, round_.number)
    found = train_jobs(session, [row for row in attempts if row.attempt <= round_.attempt])
    accepted = [job for job in found if job.state == "accepted"]
    ordinals = ordinals_of(session, accepted)
    return sorted(((ordinals[job.client_id], job) for job in accepted), key=lambda pair: pair[0])


def ordinals_of(session: Session, rows: Sequence[Job]) -> dict[str, int]:
    """Client id -> ordinal, of the clients of these jobs."""
    return repository.ordinals(session, {job.client_id for job in rows})


def evaluation_due(federation: Federation, round_: Round) -> bool:
    """Whether clients evaluate what the round made."""
    every = federation.definition["evaluation"]["every"]
    return round_.kind == "train" and schedule.evaluation_due(round_.number, federation.definition["rounds"], every)


def _shards(session: Session, round_: Round) -> tuple[int, int] | None:
    if round_.state != lifecycle.AGGREGATING:
        return None
    rows = repository.shards_of(session, round_.id)
    return (sum(row.made is not None for row in rows), len(rows)) if rows else None


def _evaluations(session: Session, round_: Round) -> tuple[JobFacts, ...]:
    if not round_.evaluation_planned:
        return ()
    rows = jobs.of_round(session, round_.id, "evaluate")
    return _facts(rows, ordinals_of(session, rows))


def _facts(rows: Sequence[Job], ordinals: dict[str, int]) -> tuple[JobFacts, ...]:
    return tuple(
        JobFacts(job.id, ordinals[job.client_id], job.state, job.submitted_number, job.submitted_at) for job in rows
    )
