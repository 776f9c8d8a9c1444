"""Responses about jobs, and the problem documents stored with them."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from coordinator.errors import TYPE_PREFIX
from coordinator.models import Artifact, Client, Federation, Job, Round
from federated import registry
from federated.protocol import (
    ArtifactReference,
    FailRequest,
    JobResponse,
    Lease,
    MemoryReference,
    SubmitRequest,
    Work,
)

_STATUS = 422


def problem_document(code: str, title: str, detail: str, tensor: str | None = None) -> dict[str, Any]:
    """A problem document (RFC 9457) about a job."""
    document = {"type": TYPE_PREFIX + code, "title": title, "status": _STATUS, "code": code, "detail": detail}
    return document if tensor is None else document | {"tensor": tensor}


def failure_document(request: FailRequest, title: str) -> dict[str, Any]:
    """The problem document for a failure that a worker reports. `error` and `place` describe an unforeseen one."""
    where = {name: value for name in ("error", "place") if (value := getattr(request.facts, name)) is not None}
    return problem_document(request.code, title, request.sentence) | where


def work_of(federation: Federation, kind: str) -> Work | None:
    """The part of the federation that a worker needs. After the description it names the base weights too.

    None if an earlier version wrote a definition that this one cannot read.
    """
    fields = federation.definition | {"federation_seed": federation.seed}
    if kind != "describe" and federation.model_facts is not None:
        digest = str(federation.model_facts["weights_digest"]).removeprefix("sha256:")
        fields["base_model"] = fields["base_model"] | {"weights_sha256": digest}
    try:
        return Work.model_validate(fields)
    except ValidationError:
        return None


def lease_response(
    job: Job,
    client: Client,
    federation: Federation,
    round_: Round | None,
    instruction: Artifact | None,
    owner_name: str,
    work: Work,
) -> Lease:
    """The leased job as its worker receives it."""
    memory = None
    if job.memory_digest is not None and job.memory_round is not None:
        memory = MemoryReference(round_number=job.memory_round, digest=job.memory_digest)
    both = job.kind == "evaluate" and registry.algorithm(work.algorithm).personal
    return Lease.model_validate(
        {
            "job_id": job.id,
            "kind": job.kind,
            "attempt": job.attempt,
            "federation_id": federation.id,
            "federation_name": federation.name,
            "owner_name": owner_name,
            "client_id": client.id,
            "ordinal": client.ordinal,
            "dataset": client.dataset,
            "settings": client.settings,
            "round_number": round_.number if round_ else None,
            "round_kind": round_.kind if round_ else None,
            "work": work,
            "seed": job.seed,
            "views": ("shared", "own") if both else ("shared",),
            "instruction": instruction and _reference(instruction),
            "memory": memory,
            "lease_seconds": job.lease_seconds,
            "expires_at": job.lease_expires_at,
        }
    )


def _reference(artifact: Artifact) -> ArtifactReference:
    return ArtifactReference(digest=artifact.digest, size_bytes=artifact.size_bytes)


def job_response(job: Job, client: Client, round_: Round | None) -> JobResponse:
    """The job as its worker and the owners see it."""
    submission: Mapping[str, Any] = job.submission or {}
    return JobResponse.model_validate(
        {
            "id": job.id,
            "kind": job.kind,
            "state": job.state,
            "federation_id": job.federation_id,
            "client_id": job.client_id,
            "ordinal": client.ordinal,
            "round_number": round_.number if round_ else None,
            "attempt": job.attempt,
            "progress": job.progress,
            "metrics": _metrics(submission),
            "seconds": submission.get("seconds", {}),
            "upload_bytes": submission.get("upload_bytes", 0),
            "download_bytes": submission.get("download_bytes", 0),
            "problem": job.problem,
            "offered_at": job.offered_at,
            "leased_at": job.leased_at,
            "submitted_at": job.submitted_at,
        }
    )


def _metrics(submission: Mapping[str, Any]) -> dict[str, float]:
    evaluation = submission.get("evaluation") or {}
    own = {f"own_{name}": value for name, value in evaluation.get("own", {}).items()}
    return {**submission.get("metrics", {}), **evaluation.get("shared", {}), **own}


def submission_document(request: SubmitRequest) -> dict[str, Any]:
    """The submission as it is stored."""
    return request.model_dump(mode="json")
