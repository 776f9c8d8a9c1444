"""What one poll costs, of two coordinators asked in turns."""

import statistics
import time
import uuid

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from benchmarks.load.cores import on_core, two_cores
from benchmarks.load.tables import SimulatedWorker
from worker_agent.coordinator_api.connection import Clock, SignedRequests
from worker_agent.coordinator_api.identity import Identity, WorkerRecord

_WARM_UP = 20
_IN_A_ROW = 10


class Poller:
    """A worker that asks for a job and does not wait."""

    def __init__(self, url: str, worker: SimulatedWorker) -> None:
        key = load_pem_private_key(worker.key.encode(), password=None)
        assert isinstance(key, Ed25519PrivateKey)  # noqa: S101 - as it was made
        record = WorkerRecord(url=url, worker_id=worker.id, organization_id="", organization_name="", name=worker.id)
        self._http = httpx.Client(base_url=url, auth=SignedRequests(Identity(record, key), Clock()), trust_env=False)
        self._body = {"boot_id": uuid.uuid4().hex, "wait_seconds": 0}
        self.seconds: list[float] = []

    def ask(self, times: int) -> None:
        """So many polls, one after another."""
        for _ in range(times):
            start = time.perf_counter()
            self._http.post("/v1/jobs/lease", json=self._body).raise_for_status()
            self.seconds.append(time.perf_counter() - start)


def compare(small: tuple[str, SimulatedWorker], full: tuple[str, SimulatedWorker], times: int) -> dict[str, float]:
    """The median poll of the full one over that of the small one."""
    pollers = [Poller(*small), Poller(*full)]
    with on_core(two_cores()[1]):
        for poller in pollers:
            poller.ask(_WARM_UP)
            poller.seconds.clear()
        for _ in range(-(-times // _IN_A_ROW)):
            for poller in pollers:
                poller.ask(_IN_A_ROW)
    medians = [statistics.median(poller.seconds) for poller in pollers]
    return {
        "small_milliseconds": 1000 * medians[0],
        "full_milliseconds": 1000 * medians[1],
        "ratio": medians[1] / medians[0],
    }
