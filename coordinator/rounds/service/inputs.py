"""Inputs of the conductor, read from the rows of a round."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from coordinator.clients import service as clients
from coordinator.jobs import service as jobs
from coordinator.models import Client, Federation, Round, Worker
from coordinator.rounds import repository
from coordinator.rounds.lifecycle import Aggregate, Check, Evaluate, Join, Plan, Start
from coordinator.rounds.schemas import (
    AggregateInput,
    CheckInput,
    ClientInput,
    JoinInput,
    Method,
    PlanInput,
    StartInput,
    UpdateInput,
)
from coordinator.rounds.service import sharding, snapshots, transitions


@dataclass(frozen=True, slots=True)
class StepContext:
    """The locked rows that a step reads and writes, and the time of its transaction."""

    session: Session
    federation: Federation
    round_: Round
    now: datetime


def for_start(context: StepContext, _: Start) -> StartInput:
    """The input of the federation's first state."""
    return start_input(context.federation, context.round_)


def for_plan(context: StepContext, _: Plan) -> PlanInput:
    """The input of the cohort's instructions."""
    return plan_input(context.session, context.federation, context.round_, context.round_.cohort or [])


def for_check(context: StepContext, step: Check) -> CheckInput:
    """The updates to check, in the order of the step."""
    federation, round_ = context.federation, context.round_
    rows = {job.id: job for job in jobs.of_round(context.session, round_.id, "train")}
    updates = tuple((key, str(rows[key].instruction_digest), str(rows[key].update_digest)) for key in step.job_ids)
    return CheckInput(_method(federation, round_), updates, federation.definition["max_update_norm"])


def for_aggregate(context: StepContext, _: Aggregate) -> AggregateInput:
    """The updates to aggregate, with the present notes of their clients."""
    return current_aggregate_input(context.session, context.federation, context.round_)


def for_join(context: StepContext, _: Join) -> JoinInput:
    """The aggregation with the results of its shards."""
    session, round_ = context.session, context.round_
    whole = current_aggregate_input(session, context.federation, round_)
    return JoinInput(whole, sharding.shard_results(session, round_))


def for_evaluate(context: StepContext, _: Evaluate) -> PlanInput:
    """The input of the evaluation's instructions."""
    session, federation, round_ = context.session, context.federation, context.round_
    evaluators = transitions.evaluating_clients(session, federation, round_, context.now)
    return evaluation_input(session, federation, round_, evaluators)


def start_input(federation: Federation, round_: Round) -> StartInput:
    """The definition of the federation's first state."""
    initial = federation.definition["initial_adapter"] or {}
    return StartInput(_method(federation, round_), initial.get("digest"), initial.get("config_digest"))


def plan_input(session: Session, federation: Federation, round_: Round, cohort: Collection[int]) -> PlanInput:
    """The input for the instructions of a cohort."""
    rows = clients.by_ordinals(session, federation.id, list(cohort))
    return _plan(session, _method(federation, round_), str(round_.start_digest), rows)


def evaluation_input(
    session: Session, federation: Federation, round_: Round, evaluators: Iterable[Client]
) -> PlanInput:
    """The input for the instructions of the clients that evaluate."""
    return _plan(session, _method(federation, round_, "evaluate"), str(round_.state_digest), evaluators)


def current_aggregate_input(session: Session, federation: Federation, round_: Round) -> AggregateInput:
    """The input for the round's aggregation, with the present notes of the clients."""
    rows = repository.all_clients(session, federation.id)
    notes = {str(client.ordinal): client.note_digest for client in rows if client.note_digest}
    return aggregate_input(session, federation, round_, notes)


def aggregate_input(
    session: Session, federation: Federation, round_: Round, notes: Mapping[str, str]
) -> AggregateInput:
    """The input for the round's aggregation, past or present. `notes`: ordinal -> digest of the client's note."""
    updates = []
    for ordinal, job in snapshots.accepted_jobs(session, round_):
        submission: dict[str, Any] = job.submission or {}
        update = submission["update"]
        updates.append(
            UpdateInput(
                ordinal=ordinal,
                examples=update["examples"],
                weight=update["weight"],
                digest=str(job.update_digest),
                metrics=submission["metrics"],
                note_digest=notes.get(str(ordinal)),
                norm=submission.get("norm", 0.0),
            )
        )
    base_model = federation.definition["base_model"]["id"]
    card = {"federation": federation.name, "round": round_.number, "clients": len(updates)}
    return AggregateInput(_method(federation, round_), str(round_.start_digest), tuple(updates), base_model, card)


def _method(federation: Federation, round_: Round, kind: str | None = None) -> Method:
    definition = federation.definition
    return Method(
        algorithm=definition["algorithm"],
        config=definition["config"],
        trainable=definition["trainable"],
        model=federation.model_facts or {},
        seed=federation.seed,
        number=round_.number,
        kind=kind or round_.kind,
        rounds=definition["rounds"],
        client_count=round_.registered or 0,
    )


def _plan(session: Session, method: Method, state_digest: str, participants: Iterable[Client]) -> PlanInput:
    return PlanInput(method, state_digest, tuple(_client(session, client) for client in participants))


def _client(session: Session, client: Client) -> ClientInput:
    worker = session.get_one(Worker, client.worker_id)
    return ClientInput(
        ordinal=client.ordinal,
        name=client.name,
        examples=client.examples or 0,
        capabilities=worker.capabilities,
        settings=client.settings,
        note_digest=client.note_digest,
        rounds_taken=client.rounds_taken,
    )
