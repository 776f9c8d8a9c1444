"""The coordinator's worker API in memory on a real loopback port. It records requests and fails on demand."""

import hashlib
import re
import threading
import time
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jwt
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from federated.protocol import PROTOCOL_VERSION
from federated.signed_statement import key_id
from tests.worker_agent.faults import Fault, Faulty, problem

CHUNK_BYTES = 10


@dataclass
class RecordingCoordinator:
    """State and record. `calls` are "METHOD /path"; `bodies` what came with them. `offers`: leases, or bytes."""

    url: str = ""
    store_origins: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    keys: list[tuple[str, str | None]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    offers: list[dict[str, Any] | bytes] = field(default_factory=list)
    lost_jobs: set[str] = field(default_factory=set)
    job_state: str = "submitted"
    artifacts: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[str, Any]] = field(default_factory=dict)
    public_key: Ed25519PublicKey | None = None
    clock_offset_seconds: float = 0.0
    assembling_polls: int = 0
    chunk_bytes: int = CHUNK_BYTES
    knows_ranges: bool = True
    doubled_at: str | None = None
    protocol_version: int = PROTOCOL_VERSION

    def count(self, call: str) -> int:
        """How often a call came; `call` is a pattern."""
        return sum(re.fullmatch(call, made) is not None for made in self.calls)

    def body_of(self, call: str) -> Any:
        """The body of the first such call."""
        return self.bodies_of(call)[0]

    def bodies_of(self, call: str) -> list[Any]:
        """The bodies of all such calls that were answered."""
        bodies = list(self.bodies)
        return [body for made, body in zip(self.calls, bodies, strict=False) if re.fullmatch(call, made) and body]

    def keys_of(self, call: str) -> list[str | None]:
        """The idempotency keys of all such calls that were answered, or whose answer was lost."""
        return [key for made, key in self.keys if re.fullmatch(call, made)]

    def fail(self, call: str, *faults: Fault) -> None:
        """The next calls that match `call` meet these faults, one each."""
        self.faults.setdefault(call, []).extend(faults)

    def take_fault(self, call: str) -> Fault | None:
        """The fault for this call, once."""
        for pattern, faults in self.faults.items():
            if faults and re.fullmatch(pattern, call):
                return faults.pop(0)
        return None


@contextmanager
def serving(coordinator: RecordingCoordinator) -> Iterator[RecordingCoordinator]:
    """The coordinator, on a port of its own, by uvicorn in a thread."""
    app = Faulty(_app(coordinator), coordinator)
    config = uvicorn.Config(
        app, port=0, log_level="critical", ws="none", lifespan="off", date_header=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    coordinator.url = f"http://{host}:{port}"
    try:
        yield coordinator
    finally:
        server.should_exit = True
        thread.join()


def _app(coordinator: RecordingCoordinator) -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def record(request: Request, go_on: Any) -> Response:
        body = await request.body()
        coordinator.calls.append(f"{request.method} {request.url.path}")
        coordinator.headers.append(str(dict(request.headers)))
        coordinator.keys.append((coordinator.calls[-1], request.headers.get("idempotency-key")))
        is_json = request.headers.get("content-type") == "application/json"
        coordinator.bodies.append(await request.json() if is_json and body else body)
        if coordinator.public_key is not None and not _signed(coordinator, request):
            return problem(401, code="token_expired", detail="Is the clock right?")
        return await go_on(request)  # type: ignore[no-any-return]

    _worker_calls(app, coordinator)
    _job_calls(app, coordinator)
    _upload_calls(app, coordinator)
    _downloads(app, coordinator)
    return app


def _signed(coordinator: RecordingCoordinator, request: Request) -> bool:
    if request.url.path in {"/v1/workers/enroll", "/healthz", "/version"}:
        return True
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    options: Any = {"verify_exp": False, "verify_iat": False}
    assert coordinator.public_key is not None
    try:
        claims = jwt.decode(token, coordinator.public_key, algorithms=["EdDSA"], audience="fedloom", options=options)
    except jwt.InvalidSignatureError:
        return False
    return bool(claims["iat"] <= time.time() + coordinator.clock_offset_seconds < claims["exp"])


def _worker_calls(app: FastAPI, coordinator: RecordingCoordinator) -> None:
    @app.post("/v1/workers/me/key")
    async def rotate(request: Request) -> dict[str, str]:
        key = (await request.json())["public_key"]
        coordinator.public_key = Ed25519PublicKey.from_public_bytes(urlsafe_b64decode(key + "="))
        return {"key_id": key_id(key)}

    @app.get("/healthz")
    @app.get("/version")
    def version() -> dict[str, Any]:
        return {"status": "ok", "version": "1.0", "protocol_version": coordinator.protocol_version}

    @app.get("/v1/workers/me")
    def me() -> dict[str, Any]:
        return {"id": "wkr_1", "store_origins": coordinator.store_origins, "doubled_at": coordinator.doubled_at}

    @app.post("/v1/workers/enroll", status_code=201)
    def enroll() -> dict[str, Any]:
        names = {"organization_id": "org_1", "organization_name": "Clinic"}
        return {"worker_id": "wkr_1", **names, "heartbeat_seconds": 10}

    @app.post("/v1/workers/me/heartbeat")
    def heartbeat() -> dict[str, Any]:
        now = datetime.now(UTC).isoformat()
        return {"server_time": now, "heartbeat_seconds": 0.2, "doubled_at": coordinator.doubled_at}


def _job_calls(app: FastAPI, coordinator: RecordingCoordinator) -> None:
    @app.post("/v1/jobs/lease")
    def lease() -> Response:
        if not coordinator.offers:
            return Response(status_code=204)
        offer = coordinator.offers.pop(0)
        return Response(offer, media_type="application/json") if isinstance(offer, bytes) else JSONResponse(offer)

    @app.get("/v1/jobs/{job_id}")
    def show(job_id: str) -> dict[str, Any]:
        return _job(job_id, coordinator.job_state)

    @app.post("/v1/jobs/{job_id}/{call}")
    def change(job_id: str, call: str) -> Response:
        if job_id in coordinator.lost_jobs:
            return problem(409, code="lease_lost", detail="The job is not leased to this worker.")
        if call == "renew":
            return JSONResponse({"expires_at": datetime.now(UTC).isoformat()})
        return JSONResponse(_job(job_id, {"submit": "submitted", "fail": "failed", "decline": "declined"}[call]))


def _job(job_id: str, state: str) -> dict[str, Any]:
    return {"id": job_id, "kind": "train", "state": state, "federation_id": "fed_1", "client_id": "clt_1"}


def _upload_calls(app: FastAPI, coordinator: RecordingCoordinator) -> None:
    prefix = "/v1/artifacts/uploads"

    @app.post(prefix, status_code=201)
    async def announce(request: Request) -> dict[str, Any]:
        wanted = await request.json()
        known = (name for name, upload in coordinator.uploads.items() if upload["digest"] == wanted["digest"])
        upload_id = next(known, f"upl_{len(coordinator.uploads) + 1}")
        coordinator.uploads.setdefault(upload_id, {**wanted, "chunks": {}, "polls": coordinator.assembling_polls})
        return _upload(coordinator, upload_id)

    @app.get(prefix + "/{upload_id}")
    def show(upload_id: str) -> dict[str, Any]:
        return _upload(coordinator, upload_id)

    @app.put(prefix + "/{upload_id}/chunks/{index}", status_code=204)
    async def put(upload_id: str, index: int, request: Request) -> None:
        coordinator.uploads[upload_id]["chunks"][index] = await request.body()

    @app.post(prefix + "/{upload_id}/complete")
    def complete(upload_id: str) -> dict[str, Any]:
        coordinator.uploads[upload_id]["closed"] = True
        return _upload(coordinator, upload_id)


def _upload(coordinator: RecordingCoordinator, upload_id: str) -> dict[str, Any]:
    upload = coordinator.uploads[upload_id]
    digest, chunks = upload["digest"], upload["chunks"]
    state, artifact = "open", None
    if upload.get("closed") and upload["polls"]:
        upload["polls"] -= 1
        state = "assembling"
    elif upload.get("closed"):
        content = b"".join(chunks[index] for index in sorted(chunks))
        state = "complete" if digest == "sha256:" + hashlib.sha256(content).hexdigest() else "failed"
        coordinator.artifacts[digest] = content
        artifact = {"digest": digest, "size_bytes": len(content)} if state == "complete" else None
    return {
        "upload_id": upload_id,
        "chunk_bytes": coordinator.chunk_bytes,
        "chunks": -(-upload["size_bytes"] // coordinator.chunk_bytes),
        "chunks_present": sorted(chunks),
        "state": state,
        "artifact": artifact,
    }


def _downloads(app: FastAPI, coordinator: RecordingCoordinator) -> None:
    @app.get("/v1/artifacts/{digest}")
    def download(digest: str, request: Request) -> Response:
        content, wanted = coordinator.artifacts.get(digest), request.headers.get("range")
        coordinator.ranges.append(wanted)
        if content is None:
            return problem(404, code="artifact_unknown", detail="No such artifact.")
        if wanted is None or not coordinator.knows_ranges:
            return Response(content)
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        return Response(content[start:], 206, {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"})
