"""A real coordinator for tests: uvicorn in a thread, the real migrations, keys, organizations, workers.

`Service` is the web process alone; background tasks are called by the tests themselves. `Installation` in
`tests.support.installation` is all of `coordinator up`.
"""

import ssl
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import FastAPI

from coordinator.artifacts.store import objects
from coordinator.auth.credentials import KEY_PREFIX, split_secret
from coordinator.auth.principals import Principal
from coordinator.db import sessions
from coordinator.organizations import service as organizations
from coordinator.organizations.schemas import ApiKeyCreate
from coordinator.queue import wakeups
from coordinator.settings import get_settings
from federated.protocol import Capabilities
from federated.signed_statement import enrollment_message, rotation_message
from tests.support.one_engine import exchanged
from tests.support.web_thread import running

ANSWER_SECONDS = 60.0
TLS = ssl.create_default_context()  # made once: reading the certificates takes longer than most tests


def forget_settings() -> None:
    """Lets this process read its settings, and open database, store and queue, anew."""
    if not exchanged(sessions.engine()):
        sessions.dispose()
    get_settings.cache_clear()
    objects.open_store.cache_clear()
    wakeups.reconfigure()


def leave_settings() -> None:
    """As `forget_settings`, where nobody knows yet which settings come next."""
    sessions.engine().dispose()
    get_settings.cache_clear()
    objects.open_store.cache_clear()
    wakeups.reconfigure()


class Bearer(httpx.Auth):
    """An API key, or whatever text a test wants to send as one."""

    def __init__(self, token: str) -> None:
        self.token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self.token}"
        yield request


@dataclass
class Identity(httpx.Auth):
    """A worker's key pair; signs a token for every request. `claims` and `key` may be bent by a test."""

    worker_id: str = ""
    private_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def public_key(self) -> str:
        raw = self.private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return urlsafe_b64encode(raw).decode().rstrip("=")

    def token(self, *, key: Ed25519PrivateKey | None = None, kid: str | None = None, **claims: Any) -> str:
        now = sessions.utcnow()
        facts = {
            "iss": self.worker_id, "aud": "fedloom", "iat": now, "exp": now + timedelta(seconds=60),
            "jti": uuid.uuid4().hex, **claims,
        }  # fmt: skip
        kept = {name: value for name, value in facts.items() if value is not None}
        return jwt.encode(kept, key or self.private_key, "EdDSA", headers={"kid": kid or self.worker_id})

    def sign(self, message: bytes) -> str:
        return urlsafe_b64encode(self.private_key.sign(message)).decode().rstrip("=")

    def enrollment(self, token: str, name: str, **fields: Any) -> dict[str, Any]:
        """The body with which it enrolls."""
        proof = self.sign(enrollment_message(token, name, self.public_key))
        return {"token": token, "name": name, "public_key": self.public_key, "proof": proof, **fields}

    def rotation(self, worker_id: str) -> dict[str, Any]:
        """The body with which it becomes the key of this worker."""
        return {"public_key": self.public_key, "proof": self.sign(rotation_message(worker_id, self.public_key))}

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self.token()}"
        yield request


@dataclass
class Organization:
    """An organization and a client of each role."""

    id: str
    name: str
    owner: httpx.Client
    operator: httpx.Client
    viewer: httpx.Client


@dataclass
class EnrolledWorker:
    """An enrolled worker: its id, its key pair, and an HTTP client that signs."""

    id: str
    organization_id: str
    name: str
    identity: Identity
    http: httpx.Client
    boot_id: str = "boot-0000"

    def heartbeat(self, **fields: Any) -> httpx.Response:
        return self.http.post("/v1/workers/me/heartbeat", json={"boot_id": self.boot_id} | fields)


class Service:
    """A running web process at `url`, with ways to get keys, organizations and workers over HTTP."""

    def __init__(self, url: str, clients: ExitStack) -> None:
        self.url = url
        self._clients = clients
        self.anonymous = self.client(None)
        with sessions.writing() as session:
            self.admin_key = organizations.create_admin_key(session, "tests", sessions.utcnow())
        self.admin = self.with_key(self.admin_key)

    def client(self, auth: httpx.Auth | None) -> httpx.Client:
        return self._clients.enter_context(
            httpx.Client(base_url=self.url, auth=auth, timeout=ANSWER_SECONDS, trust_env=False, verify=TLS)
        )

    def with_key(self, key: str) -> httpx.Client:
        return self.client(Bearer(key))

    def new_key(self, organization_id: str, role: str) -> httpx.Client:
        answer = self.admin.post(f"/v1/organizations/{organization_id}/api-keys", json={"name": role, "role": role})
        return self.with_key(created(answer)["key"])

    def new_organization(self, name: str) -> Organization:
        identity = created(self.admin.post("/v1/organizations", json={"name": name}))["id"]
        key_id, _ = split_secret(KEY_PREFIX, self.admin_key) or ("", "")
        admin = Principal("key", key_id, None, "admin")
        requests = [ApiKeyCreate(name=role, role=role) for role in ("owner", "operator", "viewer")]
        with sessions.writing() as session:
            keys = [
                organizations.create_key(session, admin, identity, request, sessions.utcnow())[1]
                for request in requests
            ]
        return Organization(identity, name, *map(self.with_key, keys))

    def new_enrollment_token(self, organization_id: str, **fields: Any) -> str:
        path = f"/v1/organizations/{organization_id}/enrollment-tokens"
        return str(created(self.admin.post(path, json=fields))["token"])

    def new_worker(
        self, organization: Organization, name: str, capabilities: Capabilities | None = None
    ) -> EnrolledWorker:
        """An enrolled worker that was heard just now."""
        identity = Identity()
        told = (capabilities or Capabilities()).model_dump(mode="json")
        body = identity.enrollment(self.new_enrollment_token(organization.id), name, capabilities=told)
        identity.worker_id = created(self.anonymous.post("/v1/workers/enroll", json=body))["worker_id"]
        http = self.client(identity)
        worker = EnrolledWorker(identity.worker_id, organization.id, name, identity, http)
        worker.heartbeat().raise_for_status()
        return worker


def key_of(client: httpx.Client) -> str:
    """The API key with which this client asks."""
    auth = client._auth
    assert isinstance(auth, Bearer)
    return auth.token


def created(answer: httpx.Response) -> dict[str, Any]:
    """The body of a 201."""
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document of an answer that must have this status and code."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    body: dict[str, Any] = answer.json()
    assert body["code"] == code, body
    assert body["status"] == status
    assert body["type"] == f"urn:fedloom:problem:{code}"
    return body


def accept(client: httpx.Client, federation_id: str) -> httpx.Response:
    """Takes part with the client's organization, in the federation as it is now."""
    path = f"/v1/federations/{federation_id}"
    digest = client.get(path).json().get("definition_digest")
    return client.post(f"{path}/accept", json={"definition_digest": digest})


def rotate(worker: EnrolledWorker) -> httpx.Response:
    """Gives the worker another key pair, at the coordinator and here."""
    following = Ed25519PrivateKey.generate()
    body = Identity(private_key=following).rotation(worker.id)
    answer = worker.http.post("/v1/workers/me/key", json=body)
    answer.raise_for_status()
    worker.identity.private_key = following
    return answer


def upload(client: httpx.Client, content: bytes, digest: str) -> dict[str, Any]:
    """Uploads `content` and returns the answer of `complete`; several chunks wait for the background."""
    announced = created(client.post("/v1/artifacts/uploads", json={"size_bytes": len(content), "digest": digest}))
    path, step = f"/v1/artifacts/uploads/{announced['upload_id']}", announced["chunk_bytes"]
    for index in set(range(announced["chunks"])) - set(announced["chunks_present"]):
        chunk = content[index * step : (index + 1) * step]
        client.put(f"{path}/chunks/{index}", content=chunk).raise_for_status()
    answer = client.post(f"{path}/complete")
    answer.raise_for_status()
    body: dict[str, Any] = answer.json()
    return body


@lru_cache(maxsize=1)
def _app() -> FastAPI:
    from coordinator.app import create_app

    return create_app()


@contextmanager
def serving(app: FastAPI | None = None) -> Iterator[Service]:
    """A running web process with an admin key. `app`: another than the product's own."""
    with running(app or _app()) as url, ExitStack() as clients:
        yield Service(url, clients)
