"""Prometheus metrics of the whole installation, computed from the database: equal at every web process.

Background processes and beat export nothing themselves; these metrics show their work and their backlog.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, get_args

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Select, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from coordinator.db.sessions import reading, utcnow
from coordinator.federations import lifecycle as federation_states
from coordinator.jobs import lifecycle as job_states
from coordinator.models import Artifact, Counter, Federation, Job, Process, Round, Worker
from coordinator.models.counter import ARTIFACT_BYTES_FREED
from coordinator.operations.heartbeats import ROLES
from coordinator.rounds import lifecycle as round_states
from coordinator.settings import get_settings

FEDERATIONS = [state for state in get_args(federation_states.State) if state not in federation_states.END_STATES]
ROUNDS = [state for state in round_states.STATES if state not in round_states.TERMINAL]
_log = structlog.get_logger(__name__)


class Installation(Collector):
    """Collector that queries the database at each scrape: a few counts of open rows over indexed columns."""

    def collect(self) -> Iterator[Metric]:
        """All metrics; only `fedloom_database_up` while the database does not answer."""
        up = GaugeMetricFamily("fedloom_database_up", "Whether the database answered this scrape")
        try:
            with reading() as session:
                metrics = list(_metrics(session, utcnow()))
        except Exception as error:  # whatever the driver raises: the process's other metrics are still exported
            _log.warning("gauges_failed", reason=type(error).__name__)
            metrics = []
        up.add_metric([], float(bool(metrics)))
        yield from [up, *metrics]


REGISTRY = CollectorRegistry()
REGISTRY.register(Installation())


def _metrics(session: Session, now: datetime) -> Iterator[Metric]:
    yield _by_state(session, "federations", Federation.state, FEDERATIONS)
    yield _by_state(session, "rounds", Round.state, ROUNDS)
    yield _by_state(session, "jobs", Job.state, job_states.OPEN)
    oldest_round = select(func.min(Round.opened_at)).where(Round.state.in_(ROUNDS))
    yield _age(session, "oldest_open_round_seconds", "Seconds since the oldest open round opened", oldest_round, now)
    oldest_offer = select(func.min(Job.offered_at)).where(Job.state == "offered")
    yield _age(session, "oldest_offered_job_seconds", "Seconds since the oldest open job offer", oldest_offer, now)
    since = now - timedelta(seconds=get_settings().worker_timeout_seconds)
    alive = select(func.count()).where(Worker.last_seen_at >= since, Worker.revoked_at.is_(None))
    yield GaugeMetricFamily("fedloom_workers_alive", "Workers with a recent heartbeat", session.scalar(alive))
    silence = GaugeMetricFamily(
        "fedloom_process_silent_seconds", "Seconds since the latest heartbeat of a role", labels=["role"]
    )
    heartbeats = select(Process.role, func.max(Process.renewed_at)).group_by(Process.role)
    for role, renewed_at in session.execute(heartbeats):
        if role in ROLES:
            silence.add_metric([role], max(0.0, (now - renewed_at).total_seconds()))
    yield silence
    artifacts, size_bytes = session.execute(
        select(func.count(), func.coalesce(func.sum(Artifact.size_bytes), 0))
    ).one()
    yield GaugeMetricFamily("fedloom_artifacts", "Artifacts in the store", artifacts)
    yield GaugeMetricFamily("fedloom_artifact_bytes", "Bytes of the artifacts in the store", float(size_bytes))
    freed_bytes = session.scalar(select(Counter.value).where(Counter.name == ARTIFACT_BYTES_FREED)) or 0
    yield CounterMetricFamily(
        "fedloom_artifact_freed_bytes", "Bytes of unreferenced artifacts that were deleted", freed_bytes
    )


def _by_state(
    session: Session, name: str, column: InstrumentedAttribute[str], states: Sequence[str]
) -> GaugeMetricFamily:
    """Number of rows in each of these states, including zeros."""
    statement = select(column, func.count()).where(column.in_(states)).group_by(column)
    counts = {row[0]: row[1] for row in session.execute(statement)}
    family = GaugeMetricFamily(f"fedloom_{name}", f"{name.capitalize()} that have not ended", labels=["state"])
    for state in states:
        family.add_metric([state], counts.get(state, 0))
    return family


def _age(session: Session, name: str, text: str, since: Select[Any], now: datetime) -> GaugeMetricFamily:
    first = session.scalar(since)
    return GaugeMetricFamily(f"fedloom_{name}", text, 0.0 if first is None else (now - first).total_seconds())
