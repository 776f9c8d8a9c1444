"""Rules for answers and logs: contents that must not be there, whoever asked for whatever."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.exchange import Exchange
from tests.fuzz.record import Finding, Kind
from tests.fuzz.turns import Turn

Fault = tuple[Kind, str]
LEAST_SECRET_CHARACTERS = 16
SHOWN_ONCE = ("key", "token", "secret")
"""Fields of an answer in which a new secret is shown."""
_ERRORS = ("error", "critical")
_ABOUT_CHARACTERS = 200


@dataclass
class Canaries:
    """`secrets`: name -> text that is in no answer and no log; `places`: in no answer.

    `hidden`: who asks -> ids of which that one learns nothing, but for those it named itself.
    """

    secrets: dict[str, str]
    places: Mapping[str, str] = field(default_factory=dict)
    hidden: Mapping[str, Iterable[str]] = field(default_factory=dict)

    def keep(self, exchange: Exchange) -> None:
        """What was shown once is in no answer any more."""
        document = exchange.document() if exchange.is_json() else {}
        for name in SHOWN_ONCE:
            value = document.get(name)
            if isinstance(value, str) and len(value) >= LEAST_SECRET_CHARACTERS:
                self.secrets[f"a {name} made in this run"] = value.rpartition("_")[2]

    def within(self, who: str, exchange: Exchange) -> list[str]:
        """Names of those in the answer."""
        answer, request = exchange.answer_text(), exchange.request_text()
        named = [name for name, secret in {**self.secrets, **self.places}.items() if secret in answer]
        return named + [name for name in self.hidden.get(who, ()) if name in answer and name not in request]


def faults(who: str, exchange: Exchange, canaries: Canaries, otherwise: str = "") -> Iterator[Fault]:
    """What is wrong with an answer, by itself. `otherwise`: how it differs from the document."""
    if exchange.status >= 500:
        yield "5xx", str(exchange.status)
    elif otherwise:
        yield "answer", otherwise
    if exchange.is_json() and not _is_strict(exchange):
        yield "answer", "JSON that only Python reads"
    for name in canaries.within(who, exchange):
        yield "canary", name


def finding(who: str, fault: Fault, operation: str, exchange: Exchange) -> Finding:
    """The fault, with what was sent and what came."""
    kind, about = fault
    return Finding(kind, who, f"{operation}: {about[:_ABOUT_CHARACTERS]}", exchange.shown(), exchange.answer_text())


def _is_strict(exchange: Exchange) -> bool:
    try:
        exchange.document()
    except ValueError:
        return False
    return True


class LogReader:
    """The lines of a process's log, each read once. `name`: of the process. `mixed`: libraries write there, too."""

    def __init__(self, name: str, path: Path, *, mixed: bool = False) -> None:
        self._name, self._path, self._mixed, self._read_bytes = name, path, mixed, 0

    def judge(self, turn: Turn, canaries: Canaries) -> None:
        """Finds what is wrong with the lines since the last time."""
        lines = self._path.read_bytes()[self._read_bytes :].split(b"\n")[:-1]
        self._read_bytes += sum(len(line) + 1 for line in lines)
        for line in (raw.decode(errors="replace") for raw in lines):
            for kind, about in _faults_of_line(line, canaries, self._mixed):
                turn.add(Finding(kind, self._name, about, None, line))


def _faults_of_line(line: str, canaries: Canaries, mixed: bool) -> Iterator[Fault]:
    for name, secret in canaries.secrets.items():
        if secret in line:
            yield "canary", f"{name} in a log"
    try:
        event = json.loads(line)
    except ValueError:
        if not mixed:
            yield "log", "a line that is not JSON"
        return
    if event.get("level") in _ERRORS:
        yield "log", str(event.get("event"))
