"""Capture of the log lines that are written inside a `with` block."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

from coordinator.telemetry import logs

Lines = Callable[[], list[dict[str, Any]]]


@contextmanager
def logged() -> Iterator[Lines]:
    """The lines of this process's log so far, read as JSON."""
    text = io.StringIO()
    with redirect_stderr(text):
        logs.configure("json", "tests")
    try:
        yield lambda: [json.loads(line) for line in text.getvalue().splitlines()]
    finally:
        logs.configure("json", "tests")
