"""Checks of `worker-agent doctor`: everything a run needs, in the order of need, with the step that fails."""

import importlib
import ssl
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import product
from typing import Any, Literal

import httpx

from federated import registry
from federated.private_files import check_private
from federated.protocol import PROTOCOL_VERSION, CoordinatorVersion, ProtocolResponse
from worker_agent.coordinator_api.client import CoordinatorClient
from worker_agent.coordinator_api.connection import Connection, open_http
from worker_agent.coordinator_api.identity import Identity, load_identity
from worker_agent.errors import AgentError, ConfigurationError, NoCoordinator
from worker_agent.node.capabilities import allowed_algorithms, installed_algorithms
from worker_agent.origins import Origins, origin_of
from worker_agent.runtime.agent import DUPLICATE_ADVICE, coordinator_url, only_agent
from worker_agent.settings import DATA_ENTRIES, AgentSettings

MAX_SKEW_SECONDS = 30.0
MAX_STORES = 8
TRAINING = "worker_agent.training"


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one step. `text` is its result, or the fault and the remedy."""

    step: str
    well: bool
    text: str


class Health(ProtocolResponse):
    """A coordinator's response at `/healthz`."""

    status: Literal["ok"]


def examine(settings: AgentSettings) -> Iterator[Finding]:
    """All findings in order, without the steps that an earlier failure makes impossible."""
    yield _finding("folder", lambda: _folder(settings))
    key = _finding("key", lambda: _key(settings))
    yield key
    identity = load_identity(settings.folder) if key.well else None
    yield from _coordinator(settings, identity)
    yield _finding("algorithms", lambda: _algorithms(settings))
    for unavailable in registry.unavailable_algorithms():
        yield Finding(
            f"algorithm {unavailable.name}",
            False,
            f"of {unavailable.distribution}, is left out: {unavailable.detail}",
        )
    yield _finding("device", lambda: _device(settings))
    sound: list[str] = []
    for step, look in _models_and_data(settings):
        finding = _finding(step, look)
        sound += [step] if finding.well else []
        yield finding
    yield from _rehearsals(settings, sound)


def _algorithms(settings: AgentSettings) -> str:
    others = set(installed_algorithms()) - set(allowed_algorithms(settings))
    names = ", ".join(sorted(allowed_algorithms(settings))) or _nothing("algorithm")
    return f"{names} (not allowed by policy.algorithms: {', '.join(sorted(others))})" if others else names


def _finding(step: str, look: Callable[[], str]) -> Finding:
    """The finding of one check; an exception of any type is a failure."""
    try:
        return Finding(step, True, look())
    except Exception as error:
        return Finding(step, False, str(error) or type(error).__name__)


def _folder(settings: AgentSettings) -> str:
    check_private([settings.folder, *(settings.folder / name for name in DATA_ENTRIES)])
    return (
        f"{settings.folder} is this user's alone" if settings.folder.exists() else f"{settings.folder} does not exist"
    )


def _key(settings: AgentSettings) -> str:
    record = load_identity(settings.folder).record
    return f"worker {record.worker_id} of {record.organization_name}"


def _coordinator(settings: AgentSettings, identity: Identity | None) -> Iterator[Finding]:
    url = coordinator_url(settings, identity) if identity is not None else str(settings.url)
    with open_http(settings, url) as http:
        findings = _reach(http, url)
        yield from findings
        if not all(finding.well for finding in findings):
            return
        yield _finding("clock", lambda: _clock(http))
        if identity is not None:
            yield from _worker(settings, http, url, identity)
        else:
            yield _finding("coordinator", lambda: _version(http))


def _reach(http: httpx.Client, url: str) -> list[Finding]:
    """Findings for URL and TLS, separately: a host with a certificate that we do not trust is reachable."""
    try:
        Connection(http, None).call("GET", "/healthz", Health, repeat=False)
    except NoCoordinator as error:
        return [Finding("url", False, str(error))]
    except AgentError as error:
        tls = _tls_problem(error)
        if tls is None:
            return [Finding("url", False, f"{url}: {error}")]
        advice = "set `ca_file` to the certificate of its authority, or fix the coordinator's certificate"
        return [Finding("url", True, url), Finding("tls", False, f"{tls}; {advice}")]
    secure = "verified" if url.startswith("https") else "none: plain http is safe on this machine only"
    return [Finding("url", True, url), Finding("tls", True, secure)]


def _tls_problem(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, ssl.SSLError) or "CERTIFICATE" in str(error) or "[SSL" in str(error):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def _clock(http: httpx.Client) -> str:
    connection = Connection(http, None)
    date = connection.once("GET", "/healthz").headers.get("Date")
    if date is None:
        return "the coordinator sends no time"
    skew_seconds = -connection.clock.offset_seconds
    if abs(skew_seconds) > MAX_SKEW_SECONDS:
        server_time = parsedate_to_datetime(date).isoformat()
        raise ConfigurationError(
            f"this clock is {skew_seconds:+.0f} s off the coordinator's ({server_time}); set it by NTP"
        )
    return f"{skew_seconds:+.0f} s off the coordinator's"


def _version(http: httpx.Client) -> str:
    """Check for a node that is not enrolled: a coordinator responds, and no other service."""
    coordinator = Connection(http, None).call("GET", "/version", CoordinatorVersion, repeat=False)
    if coordinator.protocol_version != PROTOCOL_VERSION:
        raise ConfigurationError(
            f"version {coordinator.version} speaks protocol {coordinator.protocol_version}, this agent "
            f"{PROTOCOL_VERSION}: the older of the two must be upgraded"
        )
    return f"version {coordinator.version}; protocol {PROTOCOL_VERSION}"


def _worker(settings: AgentSettings, http: httpx.Client, url: str, identity: Identity) -> Iterator[Finding]:
    """Findings on whether the coordinator knows this worker, on a second agent with its key, and on the stores."""
    step = "coordinator knows this worker"
    try:
        own = CoordinatorClient(http, identity).who_am_i()
    except AgentError as error:
        yield Finding(step, False, str(error))
        return
    yield Finding(step, True, f"yes; protocol {PROTOCOL_VERSION}")
    if own.doubled_at is not None:
        yield Finding("no second agent", False, f"{own.doubled_at:%Y-%m-%d %H:%M} UTC: {DUPLICATE_ADVICE}")
    origins = {origin for each in own.store_origins[:MAX_STORES] if (origin := origin_of(each)) is not None}
    yield from (Finding("store", True, _store(settings, url, origin)) for origin in sorted(origins))


def _store(settings: AgentSettings, url: str, origin: str) -> str:
    if Origins(httpx.URL(url), settings.hosts).target(origin) is not None:
        return f"{origin}: in hosts; transfers use it directly"
    slower = f"{origin}: not in hosts; transfers go through the coordinator (slower)"
    if url.startswith("https:") and not origin.startswith("https:"):
        return f"{slower}; it cannot be allowed, because its bytes would be sent unencrypted"
    return f'{slower}; to allow it add hosts = ["{origin}"]'


def _device(settings: AgentSettings) -> str:
    facts = _training("device").describe_device(settings)
    count = f"{facts.count} x " if facts.count > 1 else ""
    free, whole = facts.free_memory_bytes / 1024**3, facts.memory_bytes / 1024**3
    return f"{count}{facts.kind} ({facts.name}), {free:.1f} of {whole:.1f} GiB free"


def _model(settings: AgentSettings, model_id: str) -> str:
    if not model_id:
        return _nothing("base model", "[models]")
    return f"sha256 {_training('model').check_model(settings, model_id)}"


def _data(settings: AgentSettings, name: str) -> str:
    if not name:
        return _nothing("data set", "[datasets.NAME]")
    summary = _training("summary").describe_dataset(settings, name)
    counts, policy = f"{summary.rows} rows to train on, {summary.held_out_rows} held out", settings.policy
    if summary.rows < policy.min_examples:
        raise ConfigurationError(f"{counts}: too few: no update is sent below min_examples = {policy.min_examples}")
    if summary.held_out_rows < policy.min_held_out:
        return f"{counts}: too few to evaluate: no metric is sent below min_held_out = {policy.min_held_out}"
    return counts


def _models_and_data(settings: AgentSettings) -> Iterator[tuple[str, Callable[[], str]]]:
    for model_id in sorted(settings.models) or [""]:
        yield f"model {model_id}".rstrip(), partial(_model, settings, model_id)
    for name in sorted(settings.datasets) or [""]:
        yield f"data {name}".rstrip(), partial(_data, settings, name)


def _rehearsals(settings: AgentSettings, sound: Collection[str]) -> Iterator[Finding]:
    """One training step with each valid model over each valid data set; none while an agent uses the device."""
    models = [model_id for model_id in sorted(settings.models) if f"model {model_id}" in sound]
    names = [name for name in sorted(settings.datasets) if f"data {name}" in sound]
    try:
        with only_agent(settings.folder) if settings.folder.exists() else nullcontext():
            for model_id, name in product(models, names):
                rehearse = partial(_training("rehearsal").rehearse, settings, model_id, name)
                yield _finding(f"{model_id} over {name}", rehearse)
    except ConfigurationError:
        yield Finding("models over data", True, "not tried while the agent of this folder runs")


def _nothing(what: str, where: str = "policy.algorithms") -> str:
    raise ConfigurationError(f"the settings allow no {what}; see {where} in worker-agent.toml")


def _training(module: str) -> Any:
    """Import late, because it loads torch."""
    return importlib.import_module(f"{TRAINING}.{module}")
