"""Every type of exception of Python, of libraries that see rows, and of Fedloom, made with a canary as its text."""

import csv
import functools
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import httpx
import huggingface_hub
import pyarrow
import pydantic
import safetensors
import tokenizers
import torch
from pydantic import TypeAdapter, ValidationError

import worker_agent.errors
import worker_agent.training.job_errors
from federated.contract import JobDeclined
from federated.session import JobInterrupted

CANARY = "CANARY"
_LIBRARIES = (
    csv,
    datasets,
    httpx,
    huggingface_hub,
    json,
    pyarrow,
    pydantic,
    safetensors,
    tokenizers,
    worker_agent.errors,
)
_ROOTS = {"builtins", "federated", "pydantic_core", *(library.__name__.partition(".")[0] for library in _LIBRARIES)}


@functools.cache
def by_name() -> dict[str, Callable[[], BaseException]]:
    """`MODULE.NAME` -> one that holds the canary; those that cannot be made of texts alone are left out."""
    found = dict(FURTHER)
    for kind in _below(Exception):
        arguments = next((count for count in (1, 2, 3) if _is_made(kind, count)), None)
        ends_the_child = issubclass(kind, JobInterrupted | EOFError)
        if kind.__module__.partition(".")[0] in _ROOTS and arguments is not None and not ends_the_child:
            found[f"{kind.__module__}.{kind.__qualname__}"] = lambda kind=kind, count=arguments: kind(
                *[CANARY] * count
            )
    return found


def _below(kind: type[Any]) -> Iterator[type[Any]]:
    for one in kind.__subclasses__():
        yield one
        yield from _below(one)


def _is_made(kind: type[Any], count: int) -> bool:
    try:
        return CANARY in str(kind(*[CANARY] * count))
    except Exception:
        return False


def _invalid() -> ValidationError:
    try:
        TypeAdapter(int).validate_python(CANARY)
    except ValidationError as error:
        return error
    raise AssertionError


def _chained() -> BaseException:
    error = RuntimeError(CANARY)
    error.__cause__ = KeyError(CANARY)
    return error


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _go_on_for_ever() -> None:
    re.match("(a|a)+b", 64 * "a")  # and no other thread of the process has a turn meanwhile


ENDINGS: dict[str, Callable[[], None]] = {"a process that dies": _die, "a step without an end": _go_on_for_ever}
"""Not exceptions: what a step can do to the process that computes it."""

FURTHER: dict[str, Callable[[], BaseException]] = {
    "no memory": lambda: torch.OutOfMemoryError(CANARY),
    "a file that is not there": lambda: FileNotFoundError(2, "No such file", f"/{CANARY}/rows.jsonl"),
    "a full disk": lambda: OSError(28, f"No space left on device: {CANARY}", f"/{CANARY}"),
    "a text that is no UTF-8": lambda: UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY),
    "a value that is no number": _invalid,
    "a type named after a value": lambda: type(CANARY, (ValueError,), {"__module__": "builtins"})(CANARY),
    "a declined job": lambda: JobDeclined(f"{CANARY} as a code", CANARY),
    "with a cause": _chained,
    "a group": lambda: ExceptionGroup(CANARY, [ValueError(CANARY)]),
}
