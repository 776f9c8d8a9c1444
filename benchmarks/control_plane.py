"""Latency from the commit of a job offer to its lease, with 1,000 agents: `python -m benchmarks.control_plane`.

A real installation (`coordinator up`: web, background and beat) and its database run on one core, the simulated
agents on another. They use real HTTP over loopback, and each request has its agent's token: a heartbeat every 9 to 11
s, a renewal every 20 s, a long poll of 30 s. Rounds of ten clients are offered at random times. The figure is the
99th percentile over all offers, the worse of SQLite and PostgreSQL. A second measurement compares a poll with 10,000
workers and 1,000 federations in the tables to one with ten workers and one federation, in turns. There is no training
and there are no artifacts. `machine` is the time of a fixed piece of plain Python on the servers' core, once a
second: it tells a slow hour of a shared machine from slow code.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.load import polls, postgres, processes, tables
from benchmarks.load.cores import check_apart, on_core, two_cores
from benchmarks.load.speed import Speed
from benchmarks.load.tables import COHORT, SimulatedWorker, Sizes
from benchmarks.report import print_report
from examples.quickstart.installation import Installation
from examples.quickstart.rest import Api

_TARGET_MILLISECONDS = 250.0
_TARGET_POLL_RATIO = 1.5
_TARGET_MEMORY_BYTES = 32 * 1024**2
_SMALL = Sizes(workers=COHORT, federations=1, agents=COHORT)
_WARM_UP_SECONDS = 20.0
_LAST_SECONDS = 5.0
_WEIGHTS = 64 * "0"


def definition() -> dict[str, Any]:
    """The body of `POST /v1/federations` for a federation."""
    return {
        "name": "control plane",
        "task": {"task": "sequence_classification", "labels": ["no", "yes"], "max_length": 64},
        "base_model": {"id": "benchmark/model", "weights_sha256": _WEIGHTS},
        "trainable": {"kind": "lora", "r": 8},
        "algorithm": "fedavg",
        "config": {"local_steps": 20, "batch_size": 8, "learning_rate": 1e-3},
        "rounds": 100,
        "clients_per_round": COHORT,
        "seed": 0,
    }


class FilledCoordinator:
    """A running coordinator with rows in its tables."""

    def __init__(self, installation: Installation, database: str, sizes: Sizes) -> None:
        self.folder, self.url, self.environment = installation.folder, installation.url, installation.environment
        admin = Api.with_key(installation.url, installation.admin_key)
        _, (key,) = admin.new_organization("owner", "owner")
        owner_api = Api.with_key(installation.url, key)
        owner = tables.owner_of(database, owner_api("POST", "/v1/federations", definition())["id"])
        self.capabilities = tables.capabilities(owner.definition)
        self.workers: list[SimulatedWorker] = tables.fill(database, owner, sizes)

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the coordinator's processes by role."""
        pids: dict[str, int] = json.loads((self.folder / "coordinator" / "pids.json").read_text(encoding="utf-8"))
        return pids


@contextmanager
def filled_coordinator(folder: Path, database: str | None, sizes: Sizes) -> Iterator[FilledCoordinator]:
    """A coordinator on the servers' core. `database` None means SQLite in its folder."""
    folder.mkdir(parents=True)
    environment = {} if database is None else {"FEDLOOM_DATABASE_URL": database}
    with ExitStack() as stack:
        with on_core(two_cores()[0]):
            installation = stack.enter_context(Installation(folder, environment=environment))
        url = database or f"sqlite:///{folder / 'coordinator' / 'coordinator.sqlite'}"
        yield FilledCoordinator(installation, url, sizes)


def measure(
    name: str,
    folder: Path,
    databases: Sequence[str | None],
    options: argparse.Namespace,
    servers: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Any]:
    """Measure one engine: polls of a small and a full installation in turns, then the load on the full one.

    `servers`: process ids, by name, of servers beside the coordinator whose processor time counts.
    """
    small_database, full_database = databases
    full_sizes = Sizes(options.workers, options.federations, options.agents)
    with filled_coordinator(folder / f"{name}-full", full_database, full_sizes) as full:
        with filled_coordinator(folder / f"{name}-small", small_database, _SMALL) as small:
            ratio = polls.compare((small.url, small.workers[0]), (full.url, full.workers[0]), options.polls)
        print(f"{name}: a poll costs {ratio['ratio']:.2f} x with full tables", flush=True)
        load = _load(full, options, servers)
    print(f"{name}: p99 {load['p99_milliseconds']:.0f} ms, {load['errors']} errors", flush=True)
    return {**load, "poll": ratio}


def _load(target: FilledCoordinator, options: argparse.Namespace, more: Mapping[str, int]) -> dict[str, Any]:
    workers = target.folder / "workers.json"
    workers.write_text(json.dumps([asdict(worker) for worker in target.workers]), encoding="utf-8")
    now = time.monotonic()
    start = now + _WARM_UP_SECONDS
    end = start + options.seconds
    servers, callers = two_cores()
    environment = {**os.environ, **target.environment, "FEDLOOM_DATA_FOLDER": str(target.folder / "coordinator")}
    agent_parameters = {"url": target.url, "workers": str(workers), "capabilities": target.capabilities, "seed": 0}
    agent_parameters |= {"job_seconds": options.job_seconds, "until": end + _LAST_SECONDS}
    with ExitStack() as stack:
        with on_core(callers):
            agents = processes.start("agents", agent_parameters, target.folder, environment)
            stack.enter_context(processes.terminating(agents))
        with on_core(servers):
            offer_parameters = {"from": start, "until": end, "jobs_per_second": options.jobs_per_second, "seed": 0}
            offers = processes.start("offers", offer_parameters, target.folder, environment)
            stack.enter_context(processes.terminating(offers))
        pids = target.pids
        check_apart(pids["web"], agents.pid)
        time.sleep(max(0.0, start - time.monotonic()))
        processor = processes.ProcessorTime({**pids, **more})
        with processes.Usage(pids["web"]) as web, processor, Speed(servers) as speed:
            time.sleep(max(0.0, end - time.monotonic()))
        offers_report, agents_report = processes.read_report(offers), processes.read_report(agents)
    usage = {
        "memory_growth_bytes": web.growth_in_the_end_bytes(),
        "web_processor_share": web.processor_share,
        "processor_shares": processor.shares,
    }
    return _outcome(offers_report, agents_report, options.seconds) | usage | {"machine": _times(speed.samples)}


def _outcome(offers: Mapping[str, Any], agents: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    receipts = agents["received"]
    waits = sorted(receipts[job] - at for job, at in offers["committed"].items() if job in receipts)
    missing = len(offers["committed"]) - len(waits)
    return {
        "p99_milliseconds": 1000 * percentile(waits, 0.99),
        "median_milliseconds": 1000 * percentile(waits, 0.5),
        "jobs": len(waits),
        "jobs_per_second": len(waits) / seconds,
        "requests": {name: _times(values) for name, values in agents["seconds"].items()},
        "errors": sum(agents["errors"].values()) + missing,
        "problems": dict(list(agents["errors"].items())[:10]) | ({"never received": missing} if missing else {}),
        "rounds_skipped": offers["rounds_skipped"],
        "agents_processor_seconds": agents["processor_seconds"],
        "agents_late": _times(agents["late"]) | {"longest_milliseconds": 1000 * max(agents["late"], default=0.0)},
    }


def _times(values: Sequence[float]) -> dict[str, float]:
    ascending = sorted(values)
    shares = {"median_milliseconds": 0.5, "p99_milliseconds": 0.99}
    return {"count": len(ascending), **{name: 1000 * percentile(ascending, share) for name, share in shares.items()}}


def percentile(ascending: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed. Infinite for an empty sequence."""
    if not ascending:
        return float("inf")
    return ascending[max(0, -int(-share * len(ascending) // 1) - 1)]


def _measure_all(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    results = {}
    if "sqlite" in options.engines:
        results["sqlite"] = measure("sqlite", folder, (None, None), options)
    if "postgresql" in options.engines:
        with ExitStack() as stack:
            with on_core(two_cores()[0]):
                server = stack.enter_context(postgres.Postgres())
            databases = server.create("small"), server.create("full")
            results["postgresql"] = measure("postgresql", folder, databases, options, {"database": server.pid})
    return results


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control_plane", description=__doc__)
    parser.add_argument("--agents", type=int, default=1_000)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="load on each engine; 600 shows memory over ten minutes"
    )
    parser.add_argument("--jobs-per-second", type=float, default=15.0, help="mean rate of offers")
    parser.add_argument("--job-seconds", type=float, default=45.0, help="from a job's lease to its result")
    parser.add_argument("--workers", type=int, default=10_000, help="rows in the tables")
    parser.add_argument("--federations", type=int, default=1_000, help="rows in the tables")
    parser.add_argument("--polls", type=int, default=300, help="polls of each installation")
    parser.add_argument("--engines", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"])
    parser.add_argument(
        "--folder", type=Path, default=None, help="folder for all files and logs, which are kept; must not exist"
    )
    return parser.parse_args()


def _report(results: Mapping[str, Mapping[str, Any]], options: argparse.Namespace) -> None:
    figure = max(result["p99_milliseconds"] for result in results.values())
    poll_ratio = max(result["poll"]["ratio"] for result in results.values())
    growth = max(result["memory_growth_bytes"] for result in results.values())
    holds = figure <= _TARGET_MILLISECONDS and poll_ratio <= _TARGET_POLL_RATIO and growth <= _TARGET_MEMORY_BYTES
    holds = holds and not any(result["errors"] for result in results.values())
    sizes = {name: getattr(options, name) for name in ("agents", "seconds", "workers", "federations", "job_seconds")}
    details = {**sizes, "poll_ratio": poll_ratio, "memory_growth_bytes": growth, **results}
    print_report("control_plane", figure, "ms", target=_TARGET_MILLISECONDS, holds=holds, details=details)


def main() -> None:
    """The command line."""
    options = _arguments()
    processes.leave_on_sigterm()
    if options.folder is not None:
        options.folder.mkdir(parents=True)
        _report(_measure_all(options.folder.resolve(), options), options)
        return
    with tempfile.TemporaryDirectory(prefix="control-plane-") as folder:
        _report(_measure_all(Path(folder), options), options)


if __name__ == "__main__":
    main()
