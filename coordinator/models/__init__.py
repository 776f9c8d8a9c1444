"""Database tables, one file each. States and kinds are plain strings. The schema names no algorithm."""

from coordinator.models.api_key import ApiKey
from coordinator.models.artifact import Artifact, Grant, Hold
from coordinator.models.audit import AuditChain, AuditEntry
from coordinator.models.base import Base
from coordinator.models.client import Client
from coordinator.models.counter import Counter
from coordinator.models.delivery import Delivery
from coordinator.models.enrollment_token import EnrollmentToken
from coordinator.models.event import Event
from coordinator.models.federation import Federation
from coordinator.models.idempotency_key import IdempotencyKey
from coordinator.models.invitation import Invitation
from coordinator.models.job import Job
from coordinator.models.ledger_entry import LedgerEntry
from coordinator.models.organization import Organization
from coordinator.models.process import Process
from coordinator.models.round import Round
from coordinator.models.shard import Shard
from coordinator.models.upload import Upload
from coordinator.models.webhook import Webhook
from coordinator.models.worker import Worker
from coordinator.models.worker_key import WorkerKey

__all__ = [
    "ApiKey",
    "Artifact",
    "AuditChain",
    "AuditEntry",
    "Base",
    "Client",
    "Counter",
    "Delivery",
    "EnrollmentToken",
    "Event",
    "Federation",
    "Grant",
    "Hold",
    "IdempotencyKey",
    "Invitation",
    "Job",
    "LedgerEntry",
    "Organization",
    "Process",
    "Round",
    "Shard",
    "Upload",
    "Webhook",
    "Worker",
    "WorkerKey",
]
