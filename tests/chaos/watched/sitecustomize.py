"""Tells the gate of a chaos run when a step of the table is reached, and goes on when the gate says so.

Python imports a module of this name in every process that has its folder in PYTHONPATH. The functions are watched as
their modules are loaded; they do what they did before. A gate that is gone holds nobody.
"""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import inspect
import json
import os
import socket
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "FEDLOOM_TESTS_WATCHED"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules as before, and has those that hold a step watched once they are loaded."""

    def __init__(self, gate: str, steps: Sequence[dict[str, str]]) -> None:
        self._gate = gate
        self._steps: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
        for step in steps:
            self._steps[step["place"].partition(":")[0]].append(step)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._steps:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module
            spec.loader.exec_module = functools.partial(self._load, load)  # type: ignore[method-assign]
        return spec

    def _load(self, load: Callable[[ModuleType], None], module: ModuleType) -> None:
        load(module)
        for step in self._steps[module.__name__]:
            *owners, name = step["place"].partition(":")[2].split(".")
            owner = functools.reduce(getattr, owners, module)
            setattr(owner, name, _watched(getattr(owner, name), self._gate, step))


def _watched(function: Callable[..., Any], gate: str, step: dict[str, str]) -> Callable[..., Any]:
    entered = step["when"] == "entered"
    reached = functools.partial(_tell, gate, step["name"])

    @functools.wraps(function)
    def watched(*arguments: Any, **named: Any) -> Any:
        if entered:
            reached()
        result = function(*arguments, **named)
        if not entered:
            reached()
        return result

    @functools.wraps(function)
    async def watched_coroutine(*arguments: Any, **named: Any) -> Any:
        if entered:
            reached()
        result = await function(*arguments, **named)
        if not entered:
            reached()
        return result

    is_coroutine = any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))
    return watched_coroutine if is_coroutine else watched


def _tell(gate: str, name: str) -> None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(gate)
        connection.sendall(f"{name} {os.getpid()}\n".encode())
        connection.recv(1)


_told = os.environ.get(VARIABLE)
if _told:
    _what = json.loads(Path(_told).read_text(encoding="utf-8"))
    sys.meta_path.insert(0, _Finder(_what["gate"], _what["steps"]))
