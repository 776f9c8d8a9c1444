"""A job's result comes in: checked as far as it goes without tensors, then kept.

The file's header is read between two transactions. The second one decides anew whether the result is still wanted.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from coordinator.artifacts import service as artifacts
from coordinator.clients.lifecycle import TAKES_PART
from coordinator.database import lock_row, reading, utcnow, writing
from coordinator.errors import ArtifactDamaged, Conflict
from coordinator.jobs import lifecycle, repository
from coordinator.jobs.schemas import submission_document
from coordinator.jobs.service import leasing, moves
from coordinator.models import Client, Federation, Job, Round, Worker
from coordinator.security import signature_holds
from federated.header import HeaderError, check_expected
from federated.protocol import JobAnswer, SubmitRequest, UpdateSubmission
from federated.statement import Statement, key_id


def submit(worker_id: str, job_id: str, request: SubmitRequest) -> JobAnswer:
    """Keeps the result; the same result again changes nothing.

    Raises NotFound; Conflict (`round_closed`, `lease_lost`, `already_submitted`); Unprocessable, which names the
    field (the signature too) or the tensor.
    """
    with reading() as session:
        job = leasing.own_job(session, worker_id, job_id, locked=False)
        checked = _Checked() if job.submission is not None else _check(session, worker_id, job, request)
    if checked.signed_with is not None and request.update is not None:
        _check_header(str(job.instruction_digest), request.update.digest)
    with writing() as session:
        _lock_round(session, job.round_id)
        job = leasing.own_job(session, worker_id, job_id, locked=True)
        objection = _settle(session, job, request, checked, utcnow())
        answer = leasing.answer(session, job)
    if objection is not None:
        raise objection
    return answer


@dataclass(frozen=True, slots=True)
class _Checked:
    """What the first transaction found: why the result is not wanted, or the key that its update is signed with."""

    objection: Conflict | None = None
    signed_with: str | None = None


def _settle(session: Session, job: Job, request: SubmitRequest, checked: _Checked, now: datetime) -> Conflict | None:
    document = submission_document(request)
    if job.submission is not None:
        if lifecycle.same_content(job.submission, document):
            return None
        return Conflict("already_submitted", f"Job {job.id} was submitted with another result and is {job.state}.")
    # What was not wanted a moment ago was not checked either, and is not kept now.
    objection = _objection(session, job) or checked.objection
    if objection is None:
        _keep(session, job, request, checked.signed_with, now)
    elif objection.code == "round_closed" and job.round_id is not None:
        _count_late(session, job, job.round_id, now)
    return objection


def _objection(session: Session, job: Job) -> Conflict | None:
    """Why no result of this job is wanted any more, or None."""
    round_ = session.get(Round, job.round_id) if job.round_id else None
    federation = session.get_one(Federation, job.federation_id)
    if session.get_one(Client, job.client_id).state not in TAKES_PART:
        return Conflict("client_gone", "This client takes no part in the federation any more.")
    wanted = lifecycle.takes_results(job.kind, round_.state if round_ else None, federation.state)
    if job.state == "withdrawn" or not wanted:
        return Conflict("round_closed", f"The round closed without job {job.id}; its result is not needed any more.")
    if job.state == "expired" or (job.state == "offered" and job.leased_at is None):
        return Conflict("lease_lost", f"Job {job.id} is {job.state}; it is not leased by this worker.")
    try:
        lifecycle.move(job.state, "submit")
    except Conflict as conflict:
        return conflict
    return None


def _check(session: Session, worker_id: str, job: Job, request: SubmitRequest) -> _Checked:
    objection = _objection(session, job)
    if objection is not None:
        return _Checked(objection)
    lifecycle.check_submission(job.kind, request, session.get_one(Client, job.client_id).examples)
    if request.update is None:
        return _Checked()
    public_key = session.get_one(Worker, worker_id).public_key
    _check_signature(public_key, _statement(session, job, request.update), request.update.signature)
    if artifacts.uploaded_by(session, worker_id, request.update.digest) is None:
        detail = "names no upload that this worker has completed"
        raise lifecycle.refused("update_missing", "/update/digest", detail)
    return _Checked(signed_with=key_id(public_key))


def _check_signature(public_key: str, statement: Statement, signature: str | None) -> None:
    pointer = "/update/signature"
    if signature is None:
        detail = "is missing: this worker agent is older than the coordinator; upgrade it"
        raise lifecycle.refused("signature_missing", pointer, detail)
    if not signature_holds(public_key, signature, statement.encode()):
        detail = "is not this worker's over this job, round, algorithm, digest, weight and number of examples"
        raise lifecycle.refused("signature_invalid", pointer, detail)


def _statement(session: Session, job: Job, update: UpdateSubmission) -> Statement:
    definition = session.get_one(Federation, job.federation_id).definition
    round_ = session.get_one(Round, job.round_id)
    return Statement(
        federation_id=job.federation_id,
        job_id=job.id,
        round_kind=round_.kind,
        round_number=round_.number,
        algorithm=definition["algorithm"],
        algorithm_revision=definition["algorithm_revision"],
        digest=update.digest,
        weight=update.weight,
        examples=update.examples,
    )


def _check_header(instruction_digest: str, update_digest: str) -> None:
    try:
        expects = artifacts.own_header(instruction_digest).facts["expects"]
        check_expected(artifacts.read_header(update_digest), expects)
    except ArtifactDamaged as damage:
        raise artifacts.reported(damage.digest) from None
    except FileNotFoundError:
        raise artifacts.reported(update_digest) from None
    except HeaderError as error:
        for digest in (instruction_digest, update_digest):  # the worker must not pay for a bit that fell here
            if not artifacts.is_whole(digest):
                raise artifacts.reported(digest) from None
        raise lifecycle.refused("update_refused", "/update/digest", str(error), error.tensor) from None


def _keep(session: Session, job: Job, request: SubmitRequest, signed_with: str | None, now: datetime) -> None:
    moves.move(job, "submit")
    job.submission = submission_document(request)
    job.submitted_at, job.lease_expires_at, job.problem = now, None, None
    if job.round_id is not None:
        job.submitted_number = repository.submitted_in_round(session, job.round_id) + 1
    if request.update is not None:
        job.update_digest, job.key_id = request.update.digest, signed_with
        artifacts.hold(session, request.update.digest, job.id, "update")
    moves.tell(session, job)
    moves.wake(session, job)


def _count_late(session: Session, job: Job, round_id: str, now: datetime) -> None:
    """Counts a late update once; a worker that lost the answer sends it again."""
    if job.state in lifecycle.OPEN:
        leasing.withdraw(session, job, "round_closed", "The round closed before the result came.", now)
    if job.kind == "train" and job.submitted_at is None:
        job.submitted_at = now
        repository.count_late_update(session, round_id)


def _lock_round(session: Session, round_id: str | None) -> None:
    """The round before the job, as rounds do: two orders would lock each other out."""
    if round_id is not None:
        lock_row(session, Round, round_id)
