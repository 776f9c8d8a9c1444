"""Latency of `/healthz` beside 1,000 open event streams of 100 keys: `python -m benchmarks.open_streams`.

A real installation (`coordinator up`) has 20 organizations with five keys each. Every key opens ten streams of its
organization's federation, and an eleventh that is refused. `/healthz` is requested every few milliseconds in two
phases: while nothing happens, and while each federation changes once a second, which sends an event to all of its
streams. Both phases are measured before the streams are opened and with them open. The figure is the worse 99th
percentile of the last two. The benchmark holds only if all streams were served, received every change and stayed open
to the end.
"""

import asyncio
import resource
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from benchmarks.control_plane import definition
from benchmarks.load.probe import Probe, milliseconds_at
from benchmarks.load.processes import leave_on_sigterm
from benchmarks.report import print_report
from examples.quickstart.installation import Installation
from examples.quickstart.rest import Api

_TARGET_MILLISECONDS = 50.0
_ORGANIZATIONS = 20
_KEYS = 5
_STREAMS = 10
_PHASE_SECONDS = 10
_SETTLE_SECONDS = 2.0
_OPENED_AT_ONCE = 50
_FILES = 4096


@dataclass(frozen=True)
class Tenant:
    """An organization's federation by its path, its owner, and its other keys."""

    federation: str
    owner: httpx.Client
    keys: Sequence[str]

    def change(self, number: int) -> None:
        """Change the federation, which creates one event."""
        self.owner.patch(self.federation, json={"name": f"change {number}"}).raise_for_status()


def tenants(installation: Installation) -> list[Tenant]:
    """Create the organizations, each with a draft."""
    admin = Api.with_key(installation.url, installation.admin_key)
    rows = []
    for number in range(_ORGANIZATIONS):
        _, (owner, *keys) = admin.new_organization(f"clinic {number}", "owner", *["viewer"] * _KEYS)
        headers = {"Authorization": f"Bearer {owner}", "If-Match": "*"}
        http = httpx.Client(base_url=installation.url, headers=headers, timeout=60)
        federation = http.post("/v1/federations", json=definition()).raise_for_status().json()["id"]
        rows.append(Tenant(f"/v1/federations/{federation}", http, keys))
    admin.close()
    return rows


@dataclass
class Streams:
    """Event streams of one server, and counts of their responses and events."""

    url: str
    statuses: Counter[int] = field(default_factory=Counter)
    changes: int = 0
    early_ends: int = 0
    readers: list[asyncio.Task[None]] = field(default_factory=list)
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_OPENED_AT_ONCE))

    async def open(self, federation: str, key: str) -> None:
        """Open one more stream, and read it in the background if it is served."""
        address = urlsplit(self.url)
        headers = f"Host: {address.netloc}\r\nAuthorization: Bearer {key}\r\nAccept: text/event-stream\r\n"
        async with self.turns:
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            writer.write(f"GET {federation}/events HTTP/1.1\r\n{headers}\r\n".encode())
            status = int((await reader.readuntil(b"\r\n\r\n")).split()[1])
        self.statuses[status] += 1
        if status == httpx.codes.OK:
            self.readers.append(asyncio.create_task(self._read(reader, writer)))
        else:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.changes += line == b"event: federation.changed\n"
            self.early_ends += 1
        finally:
            writer.close()


@asynccontextmanager
async def open_streams(url: str, organizations: Sequence[Tenant]) -> AsyncIterator[Streams]:
    """Open all streams, one too many for each key."""
    streams = Streams(url)
    pairs = [(tenant.federation, key) for tenant in organizations for key in tenant.keys]
    await asyncio.gather(*(streams.open(*pair) for pair in pairs for _ in range(_STREAMS + 1)))
    try:
        yield streams
    finally:
        for reader in streams.readers:
            reader.cancel()
        await asyncio.gather(*streams.readers, return_exceptions=True)


async def probe_health(url: str, organizations: Sequence[Tenant] = ()) -> list[float]:
    """Seconds of the requests for `/healthz`, slowest last, while each tenant creates an event every second."""
    probe = Probe(url)
    probe.start()
    for number in range(_PHASE_SECONDS):
        pause = asyncio.create_task(asyncio.sleep(1.0))
        for tenant in organizations:
            await asyncio.to_thread(tenant.change, number)
        await pause
    return await asyncio.to_thread(probe.end)


async def measure(installation: Installation) -> None:
    """Run and report."""
    leave_on_sigterm()
    organizations = tenants(installation)
    alone_seconds, changing_seconds = (
        await probe_health(installation.url),
        await probe_health(installation.url, organizations),
    )
    async with open_streams(installation.url, organizations) as streams:
        await asyncio.sleep(_SETTLE_SECONDS)
        idle_seconds = await probe_health(installation.url)
        busy_seconds = await probe_health(installation.url, organizations)
        await asyncio.sleep(_SETTLE_SECONDS)
        statuses, changes, early_ends = dict(sorted(streams.statuses.items())), streams.changes, streams.early_ends
    alone_ms, changing_ms, idle, busy = (
        milliseconds_at(seconds, 0.99) for seconds in (alone_seconds, changing_seconds, idle_seconds, busy_seconds)
    )
    keys = _ORGANIZATIONS * _KEYS
    all_changes = keys * _STREAMS * 2 * _PHASE_SECONDS  # including those before the streams were opened
    whole = statuses == {200: keys * _STREAMS, 429: keys} and changes == all_changes and not early_ends
    print_report(
        "open_streams",
        max(idle, busy),
        "ms",
        target=_TARGET_MILLISECONDS,
        holds=max(idle, busy) < _TARGET_MILLISECONDS and whole,
        details={
            "without_streams_milliseconds": round(alone_ms, 1),
            "changes_without_streams_milliseconds": round(changing_ms, 1),
            "nothing_happens_milliseconds": round(idle, 1),
            "all_are_told_milliseconds": round(busy, 1),
            "worst_milliseconds": round(1000 * max(idle_seconds[-1], busy_seconds[-1]), 1),
            "part_of_target": round(max(idle, busy) / _TARGET_MILLISECONDS, 2),
            "statuses": statuses,
            "changes_told": changes,
            "ended_early": early_ends,
        },
    )


def main() -> None:
    """Run and report."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_FILES, hard_limit), hard_limit))  # the web process inherits it
    with tempfile.TemporaryDirectory() as folder, Installation(Path(folder)) as installation:
        asyncio.run(measure(installation))


if __name__ == "__main__":
    main()
