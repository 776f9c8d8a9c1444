"""Latency of the event loop under the largest hostile bodies: `python -m benchmarks.hostile_bodies`.

One client sends every body of `benchmarks.load.hostile` to each operation of a real installation (`coordinator up`)
that takes JSON: as nobody, as a viewer, an operator, an owner and a worker. Meanwhile `/healthz` is requested every
few milliseconds. The figure is the 99th percentile of its response times. The benchmark holds only if the web process
also grows by less than the target and no response is 5xx.
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.load.hostile import bodies
from benchmarks.load.probe import Probe, milliseconds_at
from benchmarks.load.processes import leave_on_sigterm
from benchmarks.report import print_report
from examples.quickstart.installation import Installation
from examples.quickstart.rest import Api
from federated.signed_statement import enrollment_message
from worker_agent.coordinator_api.identity import Identity, WorkerRecord, public_key, signature

_TARGET_MILLISECONDS = 100.0
_TARGET_GROWTH_BYTES = 32 * 1024**2
_LARGEST_BYTES = 1024**2
_JSON = "application/json"
_METHODS = ("post", "put", "patch", "delete")
Token = Callable[[], str]


def tokens(installation: Installation) -> dict[str, Token]:
    """Role -> source of its bearer token."""
    admin = Api.with_key(installation.url, installation.admin_key)
    roles = ("viewer", "operator", "owner")
    organization, texts = admin.new_organization("clinic", *roles)
    keys = dict(zip(roles, texts, strict=True))
    key = Ed25519PrivateKey.generate()
    token, public = admin("POST", f"/v1/organizations/{organization}/enrollment-tokens", {})["token"], public_key(key)
    proof = signature(key, enrollment_message(token, "gpu", public))
    body = {"token": token, "name": "gpu", "public_key": public, "proof": proof}
    record = httpx.post(f"{installation.url}/v1/workers/enroll", json=body).raise_for_status().json()
    record.pop("heartbeat_seconds")
    worker = Identity(WorkerRecord(url=installation.url, name="gpu", **record), key)
    admin.close()
    return {
        "nobody": lambda: "-",
        **{role: partial(str, text) for role, text in keys.items()},
        "worker": lambda: worker.token(time.time()),
    }


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield method, path and example of every operation that takes JSON."""
    schemas = document["components"]["schemas"]
    for path, item in document["paths"].items():
        for method in _METHODS:
            content = item.get(method, {}).get("requestBody", {}).get("content", {})
            if _JSON in content:
                schema = json.dumps(content[_JSON]["schema"]).rpartition("/")[2].partition('"')[0]
                yield method.upper(), path, dict(schemas[schema].get("examples", [{}])[0])


def attack(url: str, roles: Mapping[str, Token]) -> tuple[Counter[int], list[tuple[float, str]]]:
    """Send all bodies. Returns the count of each status, and seconds and names of the slowest requests."""
    statuses: Counter[int] = Counter()
    slowest: list[tuple[float, str]] = []
    with httpx.Client(base_url=url, timeout=60) as http:
        for method, path, example in operations(http.get("/openapi.json").json()):
            for (name, body), (role, token) in (
                (b, r) for b in bodies(_LARGEST_BYTES, example) for r in roles.items()
            ):
                headers = {"Content-Type": _JSON, "If-Match": "*", "Authorization": f"Bearer {token()}"}
                start = time.perf_counter()
                response = http.request(method, path.replace("{", "").replace("}", ""), content=body, headers=headers)
                slowest.append((time.perf_counter() - start, f"{method} {path} as {role}: {name}"))
                statuses[response.status_code] += 1
    return statuses, sorted(slowest, reverse=True)[:5]


def web_process(folder: Path) -> psutil.Process:
    """The process of this installation that serves HTTP."""
    web = [process for process in psutil.Process().children(recursive=True) if "serve" in process.cmdline()]
    if len(web) != 1:
        raise SystemExit(f"found {len(web)} web processes of {folder}")
    return web[0]


def main() -> None:
    """Run the benchmark and print the report."""
    leave_on_sigterm()
    with tempfile.TemporaryDirectory() as folder, Installation(Path(folder)) as installation:
        roles = tokens(installation)
        web = web_process(installation.folder)
        attack(installation.url, {"nobody": roles["nobody"]})  # fills imports and caches
        before = web.memory_info().rss
        probe = Probe(installation.url)
        probe.start()
        statuses, slowest = attack(installation.url, roles)
        seconds = probe.end()
        growth = web.memory_info().rss - before
    milliseconds = milliseconds_at(seconds, 0.99)
    failures = sum(count for status, count in statuses.items() if status >= 500 or status < 400)
    print_report(
        "hostile_bodies",
        milliseconds,
        "ms",
        target=_TARGET_MILLISECONDS,
        holds=milliseconds < _TARGET_MILLISECONDS and growth < _TARGET_GROWTH_BYTES and not failures,
        details={
            "growth_mib": round(growth / 1024**2, 1),
            "target_growth_mib": _TARGET_GROWTH_BYTES / 1024**2,
            "healthz_worst_milliseconds": round(1000 * seconds[-1], 1),
            "healthz_answers": len(seconds),
            "statuses": dict(sorted(statuses.items())),
            "slowest": [f"{1000 * duration:.0f} ms {name}" for duration, name in slowest],
        },
    )


if __name__ == "__main__":
    main()
