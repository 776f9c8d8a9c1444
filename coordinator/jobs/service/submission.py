"""Submission of results: they are checked as far as that needs no tensors, then stored.

The file's header is read between two transactions, each of which handles many results together. The second one
decides again whether the round still takes each result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from coordinator.artifacts import service as artifacts
from coordinator.auth.credentials import is_signature_valid
from coordinator.clients.lifecycle import TAKES_PART
from coordinator.db.batching import map_errors
from coordinator.errors import ArtifactDamaged, Conflict, CoordinatorError, Unavailable
from coordinator.jobs import lifecycle, repository
from coordinator.jobs.schemas import submission_document
from coordinator.jobs.service import transitions
from coordinator.jobs.service.job_batch import JobBatch
from coordinator.models import Job, Round, Worker
from coordinator.settings import get_settings
from federated.payloads.header import HeaderError, check_expected
from federated.protocol import JobResponse, SubmitRequest, UpdateSubmission
from federated.signed_statement import Statement, key_id

Submission = tuple[str, str, SubmitRequest]
"""Id of the worker, id of the job, and the result."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Outcome of the first transaction: the objection to a result, or the id of the key that signed its update.

    `files`: digests of the instruction and of the update whose headers have to be compared.
    """

    objection: Conflict | None = None
    signing_key_id: str | None = None
    files: tuple[str, str] | None = None


def check(session: Session, submissions: Sequence[Submission]) -> list[CheckResult | CoordinatorError]:
    """Checks each result without its file.

    NotFound, or Unprocessable, which names the field (the signature too), for one that is refused.
    """
    jobs = JobBatch(session, {job_id for _, job_id, _ in submissions})
    return map_errors(submissions, lambda submission: _check(jobs, *submission))


def check_files(instruction_digest: str, update_digest: str) -> None:
    """Raises Unprocessable, which names the tensor, unless the update's header matches the instruction's schema."""
    try:
        expects = artifacts.own_header(instruction_digest).facts["expects"]
        check_expected(artifacts.read_header(update_digest), expects)
    except ArtifactDamaged as damage:
        raise artifacts.report_damage(damage.digest) from None
    except FileNotFoundError:
        raise artifacts.report_damage(update_digest) from None
    except HeaderError as error:
        for digest in (instruction_digest, update_digest):  # damage in this store is not the worker's fault
            if not artifacts.is_whole(digest):
                raise artifacts.report_damage(digest) from None
        raise lifecycle.refusal("update_refused", "/update/digest", str(error), error.tensor) from None


def settle(
    session: Session, results: Sequence[tuple[Submission, CheckResult]], now: datetime
) -> list[JobResponse | CoordinatorError]:
    """Stores each result. The same result again changes nothing.

    NotFound, or Conflict (`round_closed`, `lease_lost`, `already_submitted`), for one that is not stored.
    """
    ids = {job_id for (_, job_id, _), _ in results}
    repository.lock_rounds_of(session, ids)  # before the jobs, as rounds do, against deadlocks
    rows = repository.lock_by_id(session, ids)
    jobs = JobBatch(session, rows)
    return map_errors(results, lambda result: _settle(jobs, *result, now))


def _check(jobs: JobBatch, worker_id: str, job_id: str, request: SubmitRequest) -> CheckResult:
    job = transitions.owned_job(jobs.job(job_id), worker_id, job_id)
    objection = None if job.submission is not None else _objection(jobs, job)
    if job.submission is not None or objection is not None:
        return CheckResult(objection)
    lifecycle.check_submission(job.kind, request, jobs.client(job).examples)
    if request.description is not None:
        limits = get_settings()
        lifecycle.check_size(request.description.model, min(limits.max_trained_bytes, limits.max_artifact_bytes))
    update = request.update
    if update is None:
        return CheckResult()
    public_key = jobs.session.get_one(Worker, worker_id).public_key
    _check_signature(public_key, _statement(jobs, job, update), update.signature)
    if artifacts.uploaded_by(jobs.session, worker_id, update.digest) is None:
        detail = "names no upload that this worker has completed"
        raise lifecycle.refusal("update_missing", "/update/digest", detail)
    return CheckResult(signing_key_id=key_id(public_key), files=(str(job.instruction_digest), update.digest))


def _settle(
    jobs: JobBatch, submission: Submission, check_result: CheckResult, now: datetime
) -> JobResponse | Conflict:
    worker_id, job_id, request = submission
    job = transitions.owned_job(jobs.job(job_id), worker_id, job_id)
    if job.submission is not None:
        if not lifecycle.same_content(job.submission, submission_document(request)):
            detail = f"Job {job.id} was submitted with another result and is {job.state}."
            return Conflict("already_submitted", detail)
        return transitions.to_response(jobs.session, job)
    # A result that had an objection in the first transaction was not checked, so it is not stored now.
    objection = _objection(jobs, job) or check_result.objection
    if objection is None:
        if request.update is not None and check_result.signing_key_id is None:
            raise Unavailable("submission_lost", f"The earlier submission of job {job.id} was lost: send it again.")
        _keep(jobs, job, request, check_result.signing_key_id, now)
        return transitions.to_response(jobs.session, job)
    if objection.code == "round_closed" and job.round_id is not None:
        _count_late(jobs.session, job, job.round_id, now)
    return objection


def _objection(jobs: JobBatch, job: Job) -> Conflict | None:
    """The reason why the job takes no result any more, or None."""
    round_ = jobs.round(job)
    if jobs.client(job).state not in TAKES_PART:
        return Conflict("client_gone", "This client takes no part in the federation any more.")
    is_wanted = lifecycle.takes_results(job.kind, round_.state if round_ else None, jobs.federation(job).state)
    if job.state == "withdrawn" or not is_wanted:
        return Conflict("round_closed", f"The round closed without job {job.id}; its result is not needed any more.")
    if job.state == "expired" or (job.state == "offered" and job.leased_at is None):
        return Conflict("lease_lost", f"Job {job.id} is {job.state}; it is not leased by this worker.")
    try:
        lifecycle.move(job.state, "submit")
    except Conflict as conflict:
        return conflict
    return None


def _check_signature(public_key: str, statement: Statement, signature: str | None) -> None:
    pointer = "/update/signature"
    if signature is None:
        detail = "is missing: this worker agent is older than the coordinator; upgrade it"
        raise lifecycle.refusal("signature_missing", pointer, detail)
    if not is_signature_valid(public_key, signature, statement.encode()):
        detail = "is not this worker's over this job, round, algorithm, digest, weight and number of examples"
        raise lifecycle.refusal("signature_invalid", pointer, detail)


def _statement(jobs: JobBatch, job: Job, update: UpdateSubmission) -> Statement:
    definition = jobs.federation(job).definition
    round_ = jobs.session.get_one(Round, job.round_id)
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


def _keep(jobs: JobBatch, job: Job, request: SubmitRequest, signing_key_id: str | None, now: datetime) -> None:
    transitions.move(job, "submit")
    job.submission = submission_document(request)
    job.submitted_at, job.lease_expires_at, job.problem = now, None, None
    if job.round_id is not None:
        job.submitted_number = jobs.next_submission(job.round_id)
    if request.update is not None:
        job.update_digest, job.key_id = request.update.digest, signing_key_id
        artifacts.hold(jobs.session, request.update.digest, job.id, "update")
    transitions.record_event(jobs.session, job)
    transitions.wake(jobs.session, job)


def _count_late(session: Session, job: Job, round_id: str, now: datetime) -> None:
    """Counts a late update once, also if a worker that lost the response sends it again."""
    if job.state in lifecycle.OPEN:
        transitions.withdraw(session, job, "round_closed", "The round closed before the result came.", now)
    if job.kind == "train" and job.submitted_at is None:
        job.submitted_at = now
        repository.count_late_update(session, round_id)
