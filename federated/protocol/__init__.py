"""Pydantic models of the HTTP messages between coordinator and worker agent.

Requests reject unknown fields. Responses ignore them (`ProtocolResponse`), so an older agent works with a newer
coordinator. A change that an older side would misread increments PROTOCOL_VERSION.
"""

from federated.failures import FailureFacts as FailureFacts
from federated.names import Name as Name
from federated.protocol.artifacts import UploadRequest as UploadRequest
from federated.protocol.artifacts import UploadResponse as UploadResponse
from federated.protocol.jobs import AGENT_STOPPING as AGENT_STOPPING
from federated.protocol.jobs import ARTIFACT_DAMAGED as ARTIFACT_DAMAGED
from federated.protocol.jobs import DISK_FULL as DISK_FULL
from federated.protocol.jobs import MAX_METRIC as MAX_METRIC
from federated.protocol.jobs import ROUND_KINDS as ROUND_KINDS
from federated.protocol.jobs import DeclineRequest as DeclineRequest
from federated.protocol.jobs import Description as Description
from federated.protocol.jobs import FailRequest as FailRequest
from federated.protocol.jobs import JobKind as JobKind
from federated.protocol.jobs import JobProgress as JobProgress
from federated.protocol.jobs import JobResponse as JobResponse
from federated.protocol.jobs import Lease as Lease
from federated.protocol.jobs import LeaseRequest as LeaseRequest
from federated.protocol.jobs import MemoryReference as MemoryReference
from federated.protocol.jobs import RenewRequest as RenewRequest
from federated.protocol.jobs import RenewResponse as RenewResponse
from federated.protocol.jobs import RoundKind as RoundKind
from federated.protocol.jobs import SubmitRequest as SubmitRequest
from federated.protocol.jobs import UpdateSubmission as UpdateSubmission
from federated.protocol.jobs import Work as Work
from federated.protocol.jobs import is_metric as is_metric
from federated.protocol.responses import DIGEST_PATTERN as DIGEST_PATTERN
from federated.protocol.responses import ArtifactReference as ArtifactReference
from federated.protocol.responses import BootId as BootId
from federated.protocol.responses import Digest as Digest
from federated.protocol.responses import Problem as Problem
from federated.protocol.responses import ProtocolResponse as ProtocolResponse
from federated.protocol.workers import MAX_ENROLLMENT_BYTES as MAX_ENROLLMENT_BYTES
from federated.protocol.workers import MAX_OFFERED as MAX_OFFERED
from federated.protocol.workers import PROTOCOL_VERSION as PROTOCOL_VERSION
from federated.protocol.workers import WORKER_DOUBLED as WORKER_DOUBLED
from federated.protocol.workers import Capabilities as Capabilities
from federated.protocol.workers import CoordinatorVersion as CoordinatorVersion
from federated.protocol.workers import DatasetFacts as DatasetFacts
from federated.protocol.workers import EnrollRequest as EnrollRequest
from federated.protocol.workers import EnrollResponse as EnrollResponse
from federated.protocol.workers import HeartbeatRequest as HeartbeatRequest
from federated.protocol.workers import HeartbeatResponse as HeartbeatResponse
from federated.protocol.workers import OwnWorker as OwnWorker
from federated.protocol.workers import PublicKey as PublicKey
from federated.protocol.workers import RotateKeyRequest as RotateKeyRequest
from federated.protocol.workers import RotateKeyResponse as RotateKeyResponse
from federated.task import BaseModelReference as BaseModelReference
from federated.task import Cloze as Cloze
from federated.task import Metric as Metric
from federated.task import Task as Task
from federated.task import TaskDefinition as TaskDefinition
from federated.task import TextTemplate as TextTemplate
