"""Display of the agent: a progress bar for each slot on a terminal, and one JSON object a line otherwise."""

import sys
from typing import Protocol

import structlog
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from federated.logs import configure, for_terminal, renderers
from federated.printable import printable
from federated.protocol import JobProgress, Lease
from worker_agent.settings import AgentSettings

MAX_TITLE = 60


def console_text(text: object) -> str:
    """Printable text for a console that interprets markup, with its brackets escaped."""
    return escape(printable(text))


class Display(Protocol):
    """Observer of the slots; their threads call it."""

    def start_job(self, slot: int, lease: Lease) -> None: ...
    def show_progress(self, slot: int, progress: JobProgress) -> None: ...
    def end_job(self, slot: int) -> None: ...
    def close(self) -> None: ...


class NoBars:
    """No display, for logs that a machine reads and that contain all events."""

    def start_job(self, slot: int, lease: Lease) -> None:
        """Nothing to draw."""

    def show_progress(self, slot: int, progress: JobProgress) -> None:
        """Nothing to draw."""

    def end_job(self, slot: int) -> None:
        """Nothing to draw."""

    def close(self) -> None:
        """Nothing to clear."""


class Bars:
    """One bar for each slot, below the log lines."""

    def __init__(self, console: Console) -> None:
        title = TextColumn("{task.description}", markup=False)
        metrics = TextColumn("{task.fields[metrics]}", markup=False)
        self._bars = Progress(title, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), metrics, console=console)
        self._tasks: dict[int, TaskID] = {}
        self._bars.start()

    def start_job(self, slot: int, lease: Lease) -> None:
        """Add a bar for this job. Its length is unknown until the first progress."""
        place = "" if lease.round_number is None else f" {lease.round_number}/{lease.work.rounds}"
        name, dataset = (printable(text, MAX_TITLE) for text in (lease.federation_name, lease.dataset))
        title = f"{name}{place} {lease.kind} ({dataset})"
        self._tasks[slot] = self._bars.add_task(title, total=None, metrics="")

    def show_progress(self, slot: int, progress: JobProgress) -> None:
        """Update the slot's bar."""
        metrics = " ".join(f"{printable(name, MAX_TITLE)} {value:.4g}" for name, value in progress.metrics.items())
        self._bars.update(self._tasks[slot], completed=progress.done, total=progress.total, metrics=metrics)

    def end_job(self, slot: int) -> None:
        """Remove the slot's bar."""
        self._bars.remove_task(self._tasks.pop(slot))

    def close(self) -> None:
        """Restore the terminal."""
        self._bars.stop()


def open_display(settings: AgentSettings) -> Display:
    """Configure logging by `settings.log_format`; with progress bars if standard error is a terminal."""
    terminal = for_terminal(settings.log_format)
    configure_logs(terminal)
    return Bars(Console(stderr=True)) if terminal and sys.stderr.isatty() else NoBars()


def configure_logs(terminal: bool) -> None:
    """Send this process's log to standard error: as text for a terminal, or as JSON."""
    first: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    without_locals = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)  # those may hold rows
    tracebacks = structlog.processors.ExceptionRenderer(without_locals)
    configure([*first, *renderers(terminal=terminal, json_exceptions=tracebacks)])
