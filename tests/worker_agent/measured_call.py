"""A process that calls hostile coordinators and prints the result: error, bytes on disk, memory.

`python -m tests.worker_agent.measured_call`; each line of its input is a JSON list [URL, CALL, FOLDER, SIZE], where
CALL is one of those in `_measured`.
"""

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federated.protocol import ArtifactReference, HeartbeatRequest, LeaseRequest
from worker_agent.coordinator_api.client import CoordinatorClient
from worker_agent.coordinator_api.connection import Connection, open_http
from worker_agent.coordinator_api.identity import Identity, WorkerRecord
from worker_agent.display import configure_logs
from worker_agent.errors import AgentError
from worker_agent.settings import AgentSettings

DIGEST = "sha256:" + "b" * 64


def _memory_bytes(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{name}:")[2].split()[0]) * 1024


def _forget_highest() -> None:
    """From here on the kernel notes anew how much memory this process had at most."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _identity(url: str) -> Identity:
    record = WorkerRecord(
        url=url, worker_id="wkr_1", organization_id="org_1", organization_name="Clinic", name="worker"
    )
    return Identity(record, Ed25519PrivateKey.generate())


def _measured(url: str, call: str, folder: Path, size_bytes: int) -> dict[str, object]:
    with open_http(AgentSettings(request_timeout_seconds=20), url) as http:
        client, connection = CoordinatorClient(http, _identity(url)), Connection(http, None)
        calls: dict[str, Callable[[], object]] = {
            "download": lambda: client.cache(folder).fetch(ArtifactReference(digest=DIGEST, size_bytes=size_bytes)),
            "heartbeat": lambda: client.heartbeat(HeartbeatRequest(boot_id="boot-0000")),
            "lease": lambda: client.lease(LeaseRequest(boot_id="boot-0000", wait_seconds=0)),
            "chunk": lambda: connection.once("PUT", "/v1/artifacts/uploads/upl_1/chunks/0", content=b"abc"),
            "store": lambda: connection.put_to_store(httpx.URL(f"{url}/bucket/key"), b"abc"),
        }
        gc.collect()
        _forget_highest()
        before_bytes, error = _memory_bytes("VmRSS"), None
        try:
            calls[call]()
        except (AgentError, OSError) as raised:
            error = raised
        grown = _memory_bytes("VmHWM") - before_bytes
    on_disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"error": type(error).__name__, "text": str(error), "on_disk": on_disk, "grown": grown}


def main() -> None:
    configure_logs(terminal=False)  # beside the answers, not among them
    for line in sys.stdin:
        url, call, folder, size_bytes = json.loads(line)
        print(json.dumps(_measured(url, call, Path(folder), size_bytes)), flush=True)


if __name__ == "__main__":
    main()
