"""Cost of a poll for a job, compared between two coordinators in turns."""

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
    """A worker that polls for a job without waiting."""

    def __init__(self, url: str, worker: SimulatedWorker) -> None:
        key = load_pem_private_key(worker.key.encode(), password=None)
        assert isinstance(key, Ed25519PrivateKey)  # noqa: S101 - benchmarks.load.tables writes no other
        record = WorkerRecord(url=url, worker_id=worker.id, organization_id="", organization_name="", name=worker.id)
        self._http = httpx.Client(base_url=url, auth=SignedRequests(Identity(record, key), Clock()), trust_env=False)
        self._body = {"boot_id": uuid.uuid4().hex, "wait_seconds": 0}
        self.seconds: list[float] = []

    def poll(self, times: int) -> None:
        """Poll `times` times, one after another."""
        for _ in range(times):
            start = time.perf_counter()
            self._http.post("/v1/jobs/lease", json=self._body).raise_for_status()
            self.seconds.append(time.perf_counter() - start)


def compare(small: tuple[str, SimulatedWorker], full: tuple[str, SimulatedWorker], times: int) -> dict[str, float]:
    """Milliseconds of the median poll of both coordinators, and the ratio of full to small."""
    pollers = [Poller(*small), Poller(*full)]
    with on_core(two_cores()[1]):
        for poller in pollers:
            poller.poll(_WARM_UP)
            poller.seconds.clear()
        for _ in range(-(-times // _IN_A_ROW)):
            for poller in pollers:
                poller.poll(_IN_A_ROW)
    medians = [statistics.median(poller.seconds) for poller in pollers]
    return {
        "small_milliseconds": 1000 * medians[0],
        "full_milliseconds": 1000 * medians[1],
        "ratio": medians[1] / medians[0],
    }
