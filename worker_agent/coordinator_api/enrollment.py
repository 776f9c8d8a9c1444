"""Makes this node a worker: a key pair made here, a one-time token spent at the coordinator, the answer kept.

And changes its key: the new pair lies on the disk before the coordinator hears of it.
"""

from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from federated.protocol import MAX_ENROLLMENT_BYTES, Capabilities, EnrollRequest, RotateKeyRequest
from federated.signed_statement import enrollment_message, key_id, rotation_message
from worker_agent.coordinator_api.client import CoordinatorClient
from worker_agent.coordinator_api.connection import open_http
from worker_agent.coordinator_api.identity import (
    WorkerRecord,
    adopt_next_key,
    load_identity,
    make_key,
    make_next_key,
    public_key,
    save_record,
    signature,
)
from worker_agent.errors import ConfigurationError, NotAuthorised, NotEnrolled
from worker_agent.node.capabilities import Device, capabilities
from worker_agent.settings import AgentSettings


def enroll(settings: AgentSettings, url: str, token: str) -> WorkerRecord:
    """Spend `token` at the coordinator at `url`. Raises ConfigurationError where this folder is enrolled already.

    The device is told later, with the first heartbeat: finding it takes torch.
    """
    _check_free(settings)
    key = make_key(settings.folder)
    try:
        request = _request(token, settings.name, key, capabilities(settings, Device(device="cpu")))
    except ValidationError as error:
        raise ConfigurationError("; ".join(f"{bad['loc'][0]}: {bad['msg']}" for bad in error.errors())) from None
    with open_http(settings, url) as http:
        answer = CoordinatorClient(http, None).enroll(request)
    record = WorkerRecord(
        url=url,
        worker_id=answer.worker_id,
        organization_id=answer.organization_id,
        organization_name=answer.organization_name,
        name=settings.name,
    )
    save_record(settings.folder, record)
    return record


def _request(token: str, name: str, key: Ed25519PrivateKey, ability: Capabilities) -> EnrollRequest:
    """Without data sets and models where these would be more than the coordinator hears from a stranger.

    The first heartbeat tells them.
    """
    request = EnrollRequest(token=token, name=name, public_key=public_key(key), capabilities=ability)
    message = enrollment_message(request.token, request.name, request.public_key)
    request = request.model_copy(update={"proof": signature(key, message)})
    if len(request.model_dump_json()) <= MAX_ENROLLMENT_BYTES // 2:
        return request
    fewer = ability.model_copy(update={"datasets": (), "models": ()})
    return request.model_copy(update={"capabilities": fewer})


def rotate_key(settings: AgentSettings, url: str) -> str:
    """Replace this worker's key at the coordinator at `url` and here; returns the new key's id.

    Where the answer of an earlier call was lost, the coordinator knows the next key already, and that one alone.
    """
    identity, key = load_identity(settings.folder), make_next_key(settings.folder)
    proof = signature(key, rotation_message(identity.record.worker_id, public_key(key)))
    with open_http(settings, url) as http:
        try:
            CoordinatorClient(http, identity).rotate_key(RotateKeyRequest(public_key=public_key(key), proof=proof))
        except NotAuthorised as refused:
            try:
                CoordinatorClient(http, replace(identity, key=key)).who_am_i()
            except NotAuthorised:
                raise refused from None
    adopt_next_key(settings.folder)
    return key_id(public_key(key))


def _check_free(settings: AgentSettings) -> None:
    try:
        record = load_identity(settings.folder).record
    except NotEnrolled:
        return
    advice = f"to enrol anew, move {settings.folder / 'identity'} away"
    raise ConfigurationError(f"this folder is worker {record.worker_id} at {record.url} already; {advice}")
