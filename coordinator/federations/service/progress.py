"""Progress of running federations: descriptions, rounds and the end. Each call is one transaction."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from coordinator import audit, events
from coordinator.artifacts import service as artifacts
from coordinator.clients import service as clients
from coordinator.db.sessions import lock_row
from coordinator.errors import ArtifactDamaged, Unprocessable
from coordinator.federations import lifecycle, repository
from coordinator.federations.lifecycle import Complete, Describe, Fail, Judge, OpenRound, Wait
from coordinator.federations.service import snapshots
from coordinator.jobs import service as jobs
from coordinator.models import Client, Federation, Job, Round
from coordinator.queue.wakeups import MEND, nudge
from coordinator.rounds import service as rounds
from coordinator.rounds.lifecycle import TERMINAL as ENDED_ROUND
from coordinator.settings import get_settings
from federated import schedule
from federated.protocol import Description
from federated.trainable import ModelFacts


def advance(session: Session, federation_id: str, now: datetime) -> str | None:
    """Performs every step that is due. Returns the id of the open round, which may advance now.

    Jobs of clients that are gone are withdrawn first, so that the federation does not wait for them.
    """
    federation = lock_row(session, Federation, federation_id)
    jobs.withdraw_gone(session, now, federation_id)
    while federation is not None and federation.state in lifecycle.ACTIVE:
        step = snapshots.next_step(session, federation, now)
        match step:
            case Wait():
                break
            case Judge():
                _judge(session, federation, step.job_ids, now)
            case Describe():
                _describe(session, federation, step.client_ids, now)
            case OpenRound():
                _open_round(session, federation, now)
            case Complete():
                end(session, audit.COORDINATOR, federation, "complete", step.reason, step.detail, now)
            case Fail():
                end(session, audit.COORDINATOR, federation, "fail", step.reason, step.detail, now)
        session.flush()
    newest = rounds.newest(session, federation_id)
    return None if newest is None or newest.state in ENDED_ROUND else newest.id


def end(
    session: Session,
    by: str,
    federation: Federation,
    event: lifecycle.Event,
    reason: str,
    detail: str | None,
    now: datetime,
) -> None:
    """Ends the federation and withdraws its open jobs."""
    _keep_newest_state(session, federation)
    federation.state = lifecycle.move(federation.state, event)
    federation.reason, federation.reason_detail, federation.ended_at = reason, detail, now
    federation.version += 1
    jobs.withdraw_open(session, federation_id=federation.id, reason=f"federation_{federation.state}", now=now)
    events.append(session, federation.id, f"federation.{federation.state}", reason=reason, detail=detail)
    audience = clients.audit_audience(session, federation)
    audit.append(session, by, f"federation.{federation.state}", federation.id, audience, reason=reason)


def repair_or_fail(session: Session, federation_id: str, damage: ArtifactDamaged, now: datetime) -> None:
    """Requests repair of a damaged state between two rounds. Fails the federation if an earlier repair failed."""
    federation, newest = lock_row(session, Federation, federation_id), rounds.newest(session, federation_id)
    if newest is None or damage.digest not in (newest.reason_detail or ""):
        nudge(session, MEND, damage.digest)
    elif federation is not None and federation.state in lifecycle.ACTIVE:
        end(session, audit.COORDINATOR, federation, "fail", rounds.ARTIFACT_DAMAGED, newest.reason_detail, now)


def expire(session: Session, now: datetime) -> None:
    """Expires lost leases, and withdraws the jobs of clients and workers that are gone."""
    jobs.remove_revoked(session, now)
    jobs.expire_leases(session, now)
    jobs.withdraw_gone(session, now)


def overdue(session: Session, now: datetime) -> tuple[list[str], list[str]]:
    """Ids of the federations and of the rounds in which a step is due.

    Each call reads at most `MAX_PER_TURN` federations; the time determines which. Rounds past their deadline are
    always included.
    """
    seconds = get_settings().reconcile_seconds
    ids = lifecycle.in_turn(repository.ids_in(session, lifecycle.ACTIVE), int(now.timestamp() / seconds))
    rows = repository.by_id(session, ids)
    steps = snapshots.next_steps(session, rows, now)
    federations = [federation_id for federation_id, step in steps.items() if not isinstance(step, Wait)]
    return federations, rounds.due(session, rounds.open_rounds(session, ids, now), now)


def _describe(session: Session, federation: Federation, client_ids: Sequence[str], now: datetime) -> None:
    clients = [session.get_one(Client, client_id) for client_id in client_ids]
    seeds = [schedule.job_seed(federation.seed, "describe", 0, client.ordinal, "describe") for client in clients]
    jobs.offer(session, federation, "describe", None, list(map(jobs.JobRequest, clients, seeds)), now)


def _judge(session: Session, federation: Federation, job_ids: Sequence[str], now: datetime) -> None:
    """Takes the first valid description as the federation's model. Clients with another model are taken out.

    The weights must be those that the definition names, or those on which the initial adapter was trained.
    """
    initial = federation.definition["initial_adapter"] or {}
    weights = federation.definition["base_model"]["weights_sha256"] or initial.get("weights_sha256")
    for job_id in job_ids:
        job = session.get_one(Job, job_id)
        client = session.get_one(Client, job.client_id)
        description = Description.model_validate((job.submission or {})["description"])
        ours = None if federation.model_facts is None else ModelFacts.model_validate(federation.model_facts)
        problem = lifecycle.mismatch(ours, description.model, weights)
        if problem is not None:
            tensor = problem.partition(":")[0]
            jobs.reject(session, job, Unprocessable("model_mismatch", problem, tensor=tensor).problem(), now)
            clients.take_out(session, client, "model_mismatch", problem)
            continue
        if ours is None:
            federation.model_facts = description.model.model_dump(mode="json")
            events.append(session, federation.id, "federation.described", ordinal=client.ordinal)
        jobs.accept(session, job, now)
        clients.mark_ready(session, client, description.examples, description.evaluation_examples)


def _open_round(session: Session, federation: Federation, now: datetime) -> None:
    before = rounds.newest(session, federation.id)
    if before is None:
        kind, number, start, everybody = "train", 1, None, False
    elif before.state == "withdrawn":
        kind, number, start, everybody = before.kind, before.number, before.start_digest, before.everybody
    else:
        _keep_newest_state(session, federation)
        kind, number, start, everybody = _following(before)
    rounds.open_round(session, federation, kind=kind, number=number, start_digest=start, everybody=everybody, now=now)


def _following(before: Round) -> tuple[str, int, str | None, bool]:
    """Kind, number, start digest and `everybody` of the next round, read from the state of the closed one."""
    facts = artifacts.own_header(str(before.state_digest)).facts
    kind = str(facts.get("phase", "train"))
    number = before.number + 1 if kind == before.kind else 1
    return kind, number, before.state_digest, kind == "prepare" or facts.get("cohort") == "all"


def _keep_newest_state(session: Session, federation: Federation) -> None:
    newest = rounds.newest(session, federation.id)
    if newest is not None and newest.state_digest is not None:
        federation.state_digest = newest.state_digest
