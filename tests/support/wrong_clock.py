"""A wall clock that is off, for processes that a test starts: as if their machine's were.

The kernel shifts no process's wall clock, so Python's own of such a process is shifted before anything else runs in
it: `time.time` and `time.time_ns`, from which the agent and the libraries it signs with take the time.
"""

import time
from pathlib import Path

_CUSTOMIZATION = "from tests.support import wrong_clock\nwrong_clock.shift({})\n"


def environment(folder: Path, seconds: float) -> dict[str, str]:
    """For a process, and those it starts, whose wall clock is to be off by so much; `folder` is made for that."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_CUSTOMIZATION.format(seconds), encoding="utf-8")
    repository = Path(__file__).parents[2]
    return {"PYTHONPATH": f"{folder}:{repository}"}


def shift(seconds: float) -> None:
    """From now on this interpreter's wall clock is off."""
    true, true_ns = time.time, time.time_ns
    time.time = lambda: true() + seconds
    time.time_ns = lambda: true_ns() + int(seconds * 1e9)
