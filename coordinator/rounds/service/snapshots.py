"""Snapshots of rounds, read from the tables, and the next steps that follow from them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from datetime import datetime

from sqlalchemy.orm import Session

from coordinator.clients import service as clients
from coordinator.jobs import service as jobs
from coordinator.jobs.lifecycle import CLIENT_GONE
from coordinator.models import Federation, Job, Round
from coordinator.rounds import lifecycle, repository, statistics
from coordinator.rounds.facts import JobFacts, Rules, Snapshot
from coordinator.rounds.lifecycle import Step
from federated import schedule


def next_step(session: Session, round_: Round, now: datetime) -> Step:
    """The next step of the round by the present tables. Raises Conflict if it has ended."""
    return next_steps(session, [round_], now)[round_.id]


def next_steps(session: Session, rounds: Sequence[Round], now: datetime) -> dict[str, Step]:
    """Round id -> next step. Raises Conflict if one of the rounds has ended."""
    return {
        row.id: lifecycle.next_step(snapshot, rules(session.get_one(Federation, row.federation_id)), now)
        for row, snapshot in zip(rounds, snapshots(session, rounds, now), strict=True)
    }


def rules(federation: Federation) -> Rules:
    """The part of the definition that a round's life cycle needs."""
    names = ("clients_per_round", "min_clients", "over_selection", "wait_for_clients_seconds", "max_round_retries")
    return Rules(**{name: federation.definition[name] for name in names})


def snapshots(session: Session, rounds: Sequence[Round], now: datetime) -> list[Snapshot]:
    """The rounds as the tables show them, read with a fixed number of statements for all.

    A round that waits for clients or aggregates takes a few more.
    """
    attempt_rows = repository.attempts_at(session, [row.id for row in rounds])
    facts = _facts(session, [row.id for row in attempt_rows])
    attempts: defaultdict[tuple[str, str, int], list[Round]] = defaultdict(list)
    for row in attempt_rows:
        attempts[row.federation_id, row.kind, row.number].append(row)
    return [_snapshot(session, row, attempts[row.federation_id, row.kind, row.number], facts, now) for row in rounds]


def _snapshot(
    session: Session,
    round_: Round,
    attempts: Sequence[Round],
    facts: Mapping[tuple[str, str], Sequence[JobFacts]],
    now: datetime,
) -> Snapshot:
    """`attempts`: all at this round; `facts`: (round id, kind) -> its jobs."""
    federation = session.get_one(Federation, round_.federation_id)
    alive = clients.alive_ordinals(session, federation.id, now) if round_.state == lifecycle.WAITING else {}
    earlier = [row for row in attempts if row.attempt < round_.attempt]
    own = facts.get((round_.id, "train"), ())
    every = [job for row in earlier for job in facts.get((row.id, "train"), ())] + [*own]
    acceptances = [job for job in every if job.state == "accepted" and not job.left_out]
    ineligible = _ineligible([*earlier, round_], facts)
    return Snapshot(
        state=round_.state,
        everybody=round_.everybody,
        has_start=round_.start_digest is not None,
        has_plan=round_.planned,
        has_result=round_.state_digest is not None,
        evaluation_due=evaluation_due(federation, round_),
        evaluation_planned=round_.evaluation_planned,
        opened_at=round_.opened_at,
        deadline_at=round_.deadline_at,
        evaluation_deadline_at=round_.evaluation_deadline_at,
        alive=frozenset(alive),
        accepted=frozenset(job.ordinal for job in acceptances),
        ineligible=ineligible,
        cohort=tuple(round_.cohort or ()),
        jobs=tuple(own),
        evaluations=tuple(facts.get((round_.id, "evaluate"), ())) if round_.evaluation_planned else (),
        retries=sum(row.reason == lifecycle.QUORUM_MISSED for row in earlier),
        shards=_shards(session, round_),
        outliers=tuple(statistics.outliers({job.ordinal: job.norm for job in acceptances if job.norm is not None})),
        remaining=_remaining(session, round_, ineligible) if ineligible else None,
        participants=frozenset(job.ordinal for job in every),
        losses=_loss_reasons(every),
    )


def _ineligible(attempts: Sequence[Round], facts: Mapping[tuple[str, str], Sequence[JobFacts]]) -> frozenset[int]:
    """Ordinals of clients whose update was refused in one of these attempts, or whose job would fail the same way.

    The cause of a failure may have been mended while the federation was paused: earlier failures do not count.
    """
    refusals: set[int] = set()
    failures: set[int] = set()
    for row in attempts:
        jobs_of_attempt = facts.get((row.id, "train"), ())
        refusals |= {job.ordinal for job in jobs_of_attempt if job.state == "rejected" or job.left_out}
        failures |= {job.ordinal for job in jobs_of_attempt if job.state == "failed" and job.final}
        if row.reason == lifecycle.PAUSED:
            failures.clear()
    return frozenset(refusals | failures)


def _remaining(session: Session, round_: Round, ineligible: Set[int]) -> frozenset[int] | None:
    """Ordinals of the clients that another attempt could draw, alive or not. None unless a quorum is needed now."""
    if round_.state not in (lifecycle.COLLECTING, lifecycle.AGGREGATING):
        return None
    taking_part = repository.training_clients(session, round_.federation_id)
    return frozenset(client.ordinal for client in taking_part) - ineligible


def _loss_reasons(every: Sequence[JobFacts]) -> dict[int, str]:
    """Ordinal -> reason why the client's last job of the round gave no accepted update."""
    reasons = {job.ordinal: job.reason or "no_answer" for job in every}
    accepted_ordinals = {job.ordinal for job in every if job.state == "accepted" and not job.left_out}
    return {ordinal: reason for ordinal, reason in reasons.items() if ordinal not in accepted_ordinals}


def _facts(session: Session, round_ids: Sequence[str]) -> Mapping[tuple[str, str], Sequence[JobFacts]]:
    facts: defaultdict[tuple[str, str], list[JobFacts]] = defaultdict(list)
    for row in repository.jobs_of(session, round_ids):
        round_id, kind, job_id, ordinal, state, number, at, norm, code, error, place, final = row
        left_out = state == "accepted" and code is not None
        # A job that was withdrawn because its round ended has no reason of its own.
        has_reason = state != "withdrawn" or code == CLIENT_GONE
        reason = statistics.reason(code, error, place) if has_reason else None
        job = JobFacts(job_id, ordinal, state, number, at, norm, left_out, reason, bool(final))
        facts[str(round_id), kind].append(job)
    return facts


def train_jobs(session: Session, rounds: Sequence[Round]) -> list[Job]:
    """The train jobs of these attempts."""
    return [job for row in rounds for job in jobs.of_round(session, row.id, "train")]


def accepted_jobs(session: Session, round_: Round) -> list[tuple[int, Job]]:
    """Ordinal and job of every accepted update of the round, those of earlier attempts included, by ordinal."""
    return [pair for pair in _accepted_by_ordinal(session, round_) if pair[1].problem is None]


def left_out(session: Session, round_: Round) -> list[tuple[int, Job]]:
    """Ordinal and job of every accepted update that was left out of the round, as in `accepted_jobs`."""
    return [pair for pair in _accepted_by_ordinal(session, round_) if pair[1].problem is not None]


def _accepted_by_ordinal(session: Session, round_: Round) -> list[tuple[int, Job]]:
    attempts = repository.attempts(session, round_.federation_id, round_.kind, round_.number)
    train = train_jobs(session, [row for row in attempts if row.attempt <= round_.attempt])
    acceptances = [job for job in train if job.state == "accepted"]
    ordinals = repository.ordinals(session, {job.client_id for job in acceptances})
    return sorted(((ordinals[job.client_id], job) for job in acceptances), key=lambda pair: pair[0])


def evaluation_due(federation: Federation, round_: Round) -> bool:
    """True if clients evaluate the round's result."""
    every = federation.definition["evaluation"]["every"]
    return round_.kind == "train" and schedule.evaluation_due(round_.number, federation.definition["rounds"], every)


def _shards(session: Session, round_: Round) -> tuple[int, int] | None:
    if round_.state != lifecycle.AGGREGATING:
        return None
    rows = repository.shards_of(session, round_.id)
    return (sum(row.made is not None for row in rows), len(rows)) if rows else None
