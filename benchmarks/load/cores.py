"""Placement of processes on cores: servers on one, their clients on another."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


def two_cores() -> tuple[int, int]:
    """A core for the servers and another for their clients. They are the same if there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[-1], cores[0]


def check_apart(server: int, caller: int) -> None:
    """Raise SystemExit if the two processes share a core although there is a second one."""
    cores = [os.sched_getaffinity(pid) for pid in (server, caller)]
    if os.cpu_count() != 1 and cores[0] & cores[1]:
        raise SystemExit(f"server and caller run on the same core: {cores}")


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Pin this process to the core inside the block. Processes started there, and their children, stay on it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
