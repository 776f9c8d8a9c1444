"""Job rig: a running federation with one client and one worker, and methods that bring its jobs into a state."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

from coordinator.db.sessions import reading, utcnow, writing
from coordinator.errors import CoordinatorError
from coordinator.jobs import service as jobs
from coordinator.models import Client, Federation, Job, Organization, Round, Worker
from coordinator.models.base import new_id
from federated.protocol import JobKind, JobProgress, Lease, RenewRequest, RenewResponse
from federated.signed_statement import Statement
from tests.coordinator.clients import scene
from tests.support.service import EnrolledWorker, Service, problem
from tests.support.service import Organization as Tenant

BOOT = "boot-0000"
LATER_BOOT = "boot-0001"
BEFORE_THE_WAIT_ENDS_SECONDS = 25.0
UPDATE = scene.safetensors(scene.EXPECTS)
DIGEST = scene.digest_of(UPDATE)


@dataclass
class JobRig:
    """Ids of the rows; every method is a transaction of its own."""

    folder: Path
    federation_id: str
    worker_id: str
    client_id: str
    round_id: str

    def offer(self, kind: JobKind = "train", client_id: str | None = None, round_id: str | None = None) -> str:
        """The id of a new job; a train or evaluate job has an instruction."""
        with writing() as session:
            needs_round = kind != "describe"
            digest = scene.instruction(session, self.folder, new_id("hld")) if needs_round else None
            asked = jobs.JobRequest(session.get_one(Client, client_id or self.client_id), 11, digest)
            federation = session.get_one(Federation, self.federation_id)
            round_id = (round_id or self.round_id) if needs_round else None
            (job,) = jobs.offer(session, federation, kind, round_id, [asked], utcnow())
            return job.id

    def lease(self, boot_id: str = BOOT, now: datetime | None = None) -> Lease | None:
        with writing() as session:
            (lease,) = jobs.lease(session, [(self.worker_id, boot_id)], now or utcnow())
        assert not isinstance(lease, CoordinatorError)
        return lease

    def renew(
        self,
        job_id: str,
        progress: JobProgress | None = None,
        now: datetime | None = None,
        boot_id: str = BOOT,
        worker_id: str | None = None,
    ) -> RenewResponse | CoordinatorError:
        request = RenewRequest(boot_id=boot_id, progress=progress)
        with writing() as session:
            return jobs.renew(session, [(worker_id or self.worker_id, job_id, request)], now or utcnow())[0]

    def leased(self, kind: JobKind = "train") -> str:
        """The id of a job that the worker has leased."""
        job_id = self.offer(kind)
        lease = self.lease()
        assert lease is not None
        assert lease.job_id == job_id
        return job_id

    def job(self, job_id: str) -> Job:
        with reading() as session:
            return session.get_one(Job, job_id)

    def jobs(self) -> list[tuple[str, int]]:
        """State and attempt of every job, the oldest first."""
        with reading() as session:
            rows = session.scalars(select(Job).order_by(Job.offered_at))
            return [(row.state, row.attempt) for row in rows]

    def client(self) -> Client:
        with reading() as session:
            return session.get_one(Client, self.client_id)

    def round(self) -> Round:
        with reading() as session:
            return session.get_one(Round, self.round_id)

    def set_round(self, state: str) -> None:
        with writing() as session:
            session.get_one(Round, self.round_id).state = state

    def another_client(self, dataset: str) -> str:
        """The id of a second client of the same worker."""
        with writing() as session:
            federation = session.get_one(Federation, self.federation_id)
            worker = session.get_one(Worker, self.worker_id)
            return scene.client(session, federation, worker, dataset=dataset).id


def set_up(folder: Path, organization_id: str | None = None, worker_id: str | None = None, **worker: Any) -> JobRig:
    """The rows; with new organization and worker where none are named."""
    with writing() as session:
        owner = session.get_one(Organization, organization_id) if organization_id else scene.organization(session)
        federation = scene.federation(session, owner.id)
        served = session.get_one(Worker, worker_id) if worker_id else scene.worker(session, owner, **worker)
        client = scene.client(session, federation, served)
        round_ = scene.open_round(session, federation)
        return JobRig(folder, federation.id, served.id, client.id, round_.id)


def train_body(digest: str, /, **changes: Any) -> dict[str, Any]:
    update = {"digest": digest, "weight": 10.0, "examples": 10} | changes
    return {"update": update, "metrics": {"train_loss": 0.5}, "seconds": {"total": 1.0}}


@dataclass
class Site:
    """A job rig whose worker speaks HTTP."""

    service: Service
    owner: Tenant
    worker: EnrolledWorker
    rig: JobRig

    def lease(self, wait_seconds: float = 0, boot_id: str = BOOT) -> httpx.Response:
        body = {"boot_id": boot_id, "wait_seconds": wait_seconds}
        return self.worker.http.post("/v1/jobs/lease", json=body, timeout=BEFORE_THE_WAIT_ENDS_SECONDS)

    def call(self, job_id: str, name: str, **body: Any) -> httpx.Response:
        return self.worker.http.post(f"/v1/jobs/{job_id}/{name}", json=body)

    def submit(self, job_id: str, **changes: Any) -> httpx.Response:
        return self.call(job_id, "submit", **self.signed(job_id, **changes))

    def signed(self, job_id: str, **changes: Any) -> dict[str, Any]:
        """A submission that the worker has signed, where its numbers can be."""
        body = train_body(DIGEST, **changes)
        update = body["update"]
        said = Statement(
            self.rig.federation_id, job_id, "train", 1, "fedavg", 1,
            update["digest"], update["weight"], update["examples"],
        )  # fmt: skip
        return body | {"update": {"signature": self.worker.identity.sign(said.encode()), **update}}


def refused(answer: httpx.Response, code: str, pointer: str) -> dict[str, Any]:
    document = problem(answer, 422, code)
    assert [error["pointer"] for error in document["errors"]] == [pointer]
    return document
