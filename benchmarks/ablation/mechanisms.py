"""The mechanisms of the control plane, each with the change of the source that switches it off."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Change:
    """A text of one file, relative to the repository, and its replacement."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mechanism:
    """A name, what takes its place, and the changes that put it there."""

    name: str
    replacement: str
    changes: tuple[Change, ...]


_BATCHING = "coordinator/db/batching.py"
_ENGINES = "coordinator/db/engines.py"
_CONTEXTVARS = "from contextvars import Context\n"
_TURN = "        self._turn = priority.low if low_priority else priority.high\n"
_BUSY = """    # SQLite's own busy handler sleeps longer each time, up to 100 ms, so the newest writer would go first.
    connection.exec_driver_sql("PRAGMA busy_timeout=0")
    try:
        if not _retry_busy(connection.connection.dbapi_connection, begin):
            connection.exec_driver_sql(begin)  # raises SQLAlchemy's error
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout={1000 * BUSY_SECONDS:.0f}")
"""

MECHANISMS: Sequence[Mechanism] = (
    Mechanism(
        "missed notifications",
        "no check whether a notification came for each offer; a look once a second finds what was missed",
        (Change("coordinator/jobs/wakeup.py", "        self._compare(worker_ids, listening=listening)\n", ""),),
    ),
    Mechanism(
        "routes in one list",
        "FastAPI's `include_router`",
        (
            Change(
                "coordinator/app.py",
                "        app.router.routes.extend(router.routes)  # include_router would match each route twice\n",
                "        app.include_router(router)\n",
            ),
        ),
    ),
    Mechanism(
        "rare garbage collection",
        "Python's defaults",
        (Change("coordinator/cli/startup.py", "    gc.freeze()\n    gc.set_threshold(*_COLLECT_AFTER)\n", ""),),
    ),
    Mechanism(
        "ping after idling",
        "SQLAlchemy's `pool_pre_ping`, at every checkout",
        (
            Change(_ENGINES, "        _ping_idle(engine)\n", ""),
            Change(
                _ENGINES, "pool_use_lifo=True, connect_args", "pool_use_lifo=True, pool_pre_ping=True, connect_args"
            ),
        ),
    ),
    Mechanism(
        "fair retries of SQLite's lock",
        "SQLite's own busy handler",
        (Change(_ENGINES, _BUSY, "    connection.exec_driver_sql(begin)\n"),),
    ),
    Mechanism(
        "priorities",
        "every blocking call starts at once",
        (
            Change(_BATCHING, _TURN, "        self._turn = nullcontext\n"),
            Change(
                _BATCHING,
                "from contextvars import Context\n",
                "from contextlib import nullcontext\nfrom contextvars import Context\n",
            ),
        ),
    ),
    Mechanism(
        "own log lines",
        "structlog through `logging`",
        (
            Change(
                "federated/logs.py",
                "        logger_factory=LineLogger,\n",
                "        logger_factory=structlog.stdlib.LoggerFactory(),\n",
            ),
            Change(
                "coordinator/telemetry/logs.py",
                '"class": "logging.StreamHandler", "formatter": "structlog"',
                '"class": "logging.StreamHandler"',
            ),
        ),
    ),
    Mechanism(
        "remembered tokens",
        "a signature check at every request",
        (
            Change(
                "coordinator/auth/worker_tokens.py",
                "_verify if len(token) <= _CACHE_MAX_CHARACTERS else _verify.__wrapped__",
                "_verify.__wrapped__",
            ),
        ),
    ),
    Mechanism(
        "batching",
        "a thread, a connection and a commit for each call",
        (
            Change(
                _BATCHING,
                "    async def __call__(self, item: Item) -> Result:\n        loop",
                """    async def __call__(self, item: Item) -> Result:
        (result,) = await to_thread.run_sync(self._serve_all, [item])
        if isinstance(result, Exception):
            raise result
        return result
        loop""",
            ),
        ),
    ),
)
"""In the order in which they are taken out, the cheapest to do without first, as far as it is known beforehand."""


def switch_off(mechanism: Mechanism, root: Path) -> None:
    """Change the sources under `root`. Raises SystemExit for a text that is not there exactly once."""
    for change in mechanism.changes:
        file = root / change.file
        text = file.read_text(encoding="utf-8")
        if text.count(change.old) != 1:
            raise SystemExit(
                f"{mechanism.name}: {change.file} has the text to be replaced {text.count(change.old)} times"
            )
        file.write_text(text.replace(change.old, change.new), encoding="utf-8")
