"""Simulated agents, which send heartbeats, lease, renew and submit as worker agents do, but train nothing.

They run in a process of their own: `python -m benchmarks.load.agents '{...}'`. Every agent has its own connections
and tokens, which come from the worker agent's code. No request is retried: every failure is an error.
"""

import asyncio
import gc
import json
import random
import sys
import time
import uuid
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from benchmarks.load.wire import Response, Wire
from worker_agent.coordinator_api.connection import jitter
from worker_agent.coordinator_api.identity import Identity, Tokens, WorkerRecord

HEARTBEAT_SECONDS = 10.0
RENEW_SECONDS = 20.0
LONG_POLL_SECONDS = 30.0
_ALL_STARTED_SECONDS = HEARTBEAT_SECONDS + 5.0
_SLEEP_SECONDS = 0.02


class Load:
    """Parameters and measurements that all agents share. `received_at`: job id -> `time.monotonic` of its lease."""

    def __init__(self, url: str, until: float, job_seconds: float, capabilities: dict[str, Any]) -> None:
        self.url, self.until, self.job_seconds, self.capabilities = url, until, job_seconds, capabilities
        self.received_at: dict[str, float] = {}
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.errors: Counter[str] = Counter()
        self.late_seconds: list[float] = []

    def over(self) -> bool:
        """True once the time is up."""
        return time.monotonic() >= self.until


class Agent:
    """One simulated worker."""

    def __init__(self, load: Load, worker_id: str, key: Ed25519PrivateKey) -> None:
        record = WorkerRecord(
            url=load.url, worker_id=worker_id, organization_id="", organization_name="", name=worker_id
        )
        self._load, self._boot_id = load, uuid.uuid4().hex
        self._tokens, self._wire = Tokens(Identity(record, key)), Wire(load.url)

    async def run(self, start_after_seconds: float) -> None:
        """Send heartbeats and work until the time is up."""
        await asyncio.sleep(start_after_seconds)
        heartbeats = asyncio.create_task(self._beat())
        while not self._load.over():
            await self._work_once()
        heartbeats.cancel()
        self._wire.close()

    async def _beat(self) -> None:
        while True:
            body = {"boot_id": self._boot_id, "capabilities": self._load.capabilities}
            await self._post("heartbeat", "/v1/workers/me/heartbeat", body)
            await asyncio.sleep(jitter(HEARTBEAT_SECONDS))

    async def _work_once(self) -> None:
        wait_seconds = min(LONG_POLL_SECONDS, max(0.0, self._load.until - time.monotonic()))
        response = await self._post(
            "lease", "/v1/jobs/lease", {"boot_id": self._boot_id, "wait_seconds": wait_seconds}
        )
        if response is None:
            await asyncio.sleep(1.0)
        elif response.status == 200:
            received_at = time.monotonic()
            job_id = json.loads(response.body)["job_id"]
            self._load.received_at[job_id] = received_at
            await self._do(f"/v1/jobs/{job_id}")

    async def _do(self, path: str) -> None:
        ends_at = time.monotonic() + self._load.job_seconds
        while (left_seconds := ends_at - time.monotonic()) > 0:
            await asyncio.sleep(min(RENEW_SECONDS, left_seconds))
            if time.monotonic() < ends_at:
                progress = {"done": 1, "total": 2, "metrics": {"train_loss": 0.5}}
                await self._post("renew", f"{path}/renew", {"boot_id": self._boot_id, "progress": progress})
        evaluation = {"shared": {"examples": 20.0, "loss": 0.5, "accuracy": 0.75}}
        await self._post("submit", f"{path}/submit", {"evaluation": evaluation, "seconds": {"evaluation": 1.0}})

    async def _post(self, name: str, path: str, body: dict[str, Any]) -> Response | None:
        start = time.monotonic()
        try:
            response = await self._wire.post(path, body, self._tokens.at(time.time()))
        except (OSError, TimeoutError) as error:
            self._load.errors[f"{name}: {type(error).__name__} {error}"] += 1
            return None
        if response.status >= 400:
            self._load.errors[f"{name}: {response.status} {response.body[:200]!r}"] += 1
            return None
        if name != "lease":
            self._load.seconds[name].append(time.monotonic() - start)
        return response


async def _measure_lateness(load: Load) -> None:
    """Record by how much this process wakes up late, as its measurements are late by as much.

    Once all agents run, existing objects are excluded from Python's garbage collection. Its collections stopped all
    agents at once for a fifth of a second every few seconds, which does not happen to agents in separate processes.
    """
    await asyncio.sleep(_ALL_STARTED_SECONDS)
    gc.collect()
    gc.freeze()
    while not load.over():
        start = time.monotonic()
        await asyncio.sleep(_SLEEP_SECONDS)
        load.late_seconds.append(time.monotonic() - start - _SLEEP_SECONDS)


async def run(parameters: dict[str, Any]) -> Load:
    """Run all agents, started one after another within one heartbeat interval."""
    load = Load(parameters["url"], parameters["until"], parameters["job_seconds"], parameters["capabilities"])
    workers = json.loads(Path(parameters["workers"]).read_text(encoding="utf-8"))
    draw = random.Random(parameters["seed"])
    async with asyncio.TaskGroup() as group:
        group.create_task(_measure_lateness(load))
        for worker in workers:
            key = load_pem_private_key(worker["key"].encode(), password=None)
            assert isinstance(key, Ed25519PrivateKey)  # noqa: S101 - benchmarks.load.tables writes no other
            group.create_task(Agent(load, worker["id"], key).run(draw.uniform(0, HEARTBEAT_SECONDS)))
    return load


def main() -> None:
    """The command line: one JSON object as argument, one on standard output."""
    load = uvloop.run(run(json.loads(sys.argv[1])))
    report = {"received": load.received_at, "seconds": load.seconds, "errors": load.errors, "late": load.late_seconds}
    print(json.dumps(report | {"processor_seconds": time.process_time()}), flush=True)


if __name__ == "__main__":
    main()
