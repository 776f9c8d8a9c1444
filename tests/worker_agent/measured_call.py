"""A process of its own that asks a hostile coordinator, and prints what came of it: error, bytes on disk, memory.

`python -m tests.worker_agent.measured_call URL CALL FOLDER SIZE`; CALL: one of those in `main`.
"""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federated.protocol import ArtifactReference, HeartbeatRequest, LeaseRequest
from worker_agent.connection import Connection, open_http
from worker_agent.coordinator_client import CoordinatorClient
from worker_agent.errors import AgentError
from worker_agent.identity import Identity, WorkerRecord
from worker_agent.settings import AgentSettings

DIGEST = "sha256:" + "b" * 64


def _highest_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _identity(url: str) -> Identity:
    record = WorkerRecord(
        url=url, worker_id="wkr_1", organization_id="org_1", organization_name="Clinic", name="worker"
    )
    return Identity(record, Ed25519PrivateKey.generate())


def main(url: str, call: str, folder: Path, size_bytes: int) -> None:
    with open_http(AgentSettings(request_timeout_seconds=3), url) as http:
        client, connection = CoordinatorClient(http, _identity(url)), Connection(http, None)
        calls: dict[str, Callable[[], object]] = {
            "download": lambda: client.cache(folder).fetch(ArtifactReference(digest=DIGEST, size_bytes=size_bytes)),
            "heartbeat": lambda: client.heartbeat(HeartbeatRequest(boot_id="boot-0000")),
            "lease": lambda: client.lease(LeaseRequest(boot_id="boot-0000", wait_seconds=0)),
            "chunk": lambda: connection.once("PUT", "/v1/artifacts/uploads/upl_1/chunks/0", content=b"abc"),
            "store": lambda: connection.put_to_store(httpx.URL(f"{url}/bucket/key"), b"abc"),
        }
        before_bytes, error = _highest_bytes(), None
        try:
            calls[call]()
        except (AgentError, OSError) as raised:
            error = raised
    on_disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    grown = _highest_bytes() - before_bytes
    print(json.dumps({"error": type(error).__name__, "text": str(error), "on_disk": on_disk, "grown": grown}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
