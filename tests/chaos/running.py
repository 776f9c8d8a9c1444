"""A watched installation with two nodes; one federation for each point, held against the undisturbed one.

A point is done when its federation ended as the undisturbed one did, and everything is up again.
"""

import importlib
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from examples.quickstart.rest import FINAL_STATES
from federated import registry
from tests.chaos import killing
from tests.chaos.forgetting import forget
from tests.chaos.gate import Gate, Reached, gated
from tests.chaos.points import STEPS, Point, Step
from tests.chaos.record import Record, difference, federation, record, states
from tests.support.nodes import Consortium, consortium
from tests.support.places import places

NAMES = ("north", "south")
DEADLINE_SECONDS = 180.0
POLLING_SECONDS = 0.25
MOST_CHARACTERS = 20_000
LAST_STEP = "completed"
# For steps that still follow the last one: messages that leave, ticks of the clock.
AFTERMATH_SECONDS = 3.0
# Small enough for an update to be several chunks, and a state several shards.
SETTINGS: dict[str, object] = {
    "claim_seconds": 3, "reconcile_seconds": 1, "process_renew_seconds": 3, "chunk_bytes": 2048, "shard_bytes": 2048,
}  # fmt: skip
ROUNDS = 2


class Unreached(Exception):
    """The federation of this id ended before any process had come to the step so often."""


class Stuck(Exception):
    """The federation did not end in time; `states`: who waits for what."""

    def __init__(self, states: dict[str, Any]) -> None:
        super().__init__(states)
        self.states = states


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """What the run in which nobody died came to, and how often each step was reached in it."""

    record: Record
    counts: Counter[str]

    def never(self) -> list[str]:
        """Steps of the table that nobody reached."""
        return [step.name for step in STEPS if not self.counts[step.name]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a point ended: `same`, `different`, `stuck`, `broken` or `unreached`."""

    result: str
    occurrence: int
    seconds: float
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.result == "same"


class World:
    """A watched installation, and what it makes of a federation when nobody dies."""

    def __init__(self, nodes: Consortium, gate: Gate, algorithm: str, deadline_seconds: float) -> None:
        self.nodes, self.gate = nodes, gate
        self._algorithm, self._deadline_seconds = algorithm, deadline_seconds

    def undisturbed(self) -> Undisturbed:
        """One federation in which nobody dies."""
        federation_id = self._start(None, 1)
        self._wait(federation_id, self._deadline_seconds)
        undisturbed = Undisturbed(record(self.nodes, federation_id), self.gate.counts.copy())
        forget(self.nodes, federation_id)
        return undisturbed

    def run(self, point: Point, undisturbed: Undisturbed) -> Outcome:
        """The point, at one of the times that the undisturbed run came by; else at the first."""
        began = time.monotonic()
        occurrence = point.occurrence(undisturbed.counts[point.step.name])
        try:
            try:
                federation_id = self._disturbed(point, occurrence)
            except Unreached as unreached:
                forget(self.nodes, str(unreached))
                federation_id = self._disturbed(point, occurrence := 1)
            self.nodes.installation.wait_until_ready()
            told = difference(undisturbed.record, record(self.nodes, federation_id))
            result = "different" if told else "same"
            if not told:
                forget(self.nodes, federation_id)
        except Unreached:
            result, told = "unreached", {}
        except Stuck as stuck:
            result, told = "stuck", stuck.states
        except Exception as error:  # whatever broke: the next point must not suffer from it
            result, told = "broken", {"error": f"{type(error).__name__}: {error}"[:MOST_CHARACTERS]}
        finally:
            self.gate.count_anew()
        return Outcome(result, occurrence, time.monotonic() - began, told)

    def _disturbed(self, point: Point, occurrence: int) -> str:
        federation_id = self._start(point.step, occurrence)
        until = time.monotonic() + self._deadline_seconds
        reached = self._reached(until)
        if reached is not None:
            self._strike(point, reached)
        self._wait(federation_id, until - time.monotonic())
        if reached is None:
            raise Unreached(federation_id)
        return federation_id

    def _start(self, step: Step | None, occurrence: int) -> str:
        """A federation that runs from now on; steps are counted from its start."""
        federation_id = self.nodes.start(**definition(self._algorithm))
        self.gate.count_anew(step, occurrence)
        return federation_id

    def _reached(self, until: float) -> Reached | None:
        """Who is held; None once the federation came to its end. Asks nobody else: the web process may be the one."""
        reached, ended = None, False
        while reached is None and not ended and time.monotonic() < until:
            ended = self.gate.counts[LAST_STEP] > 0
            reached = self.gate.held(AFTERMATH_SECONDS if ended else POLLING_SECONDS)
        return reached

    def _strike(self, point: Point, reached: Reached) -> None:
        """The victim dies while the process at the step stands still; that one goes on before the victim is back."""
        role = point.victim if point.victim in ("web", "background", "beat") else None
        before = None if role is None else self.nodes.installation.pid_of(role)
        killing.kill(self.nodes, point, reached)
        self.gate.let_go()
        if role is not None and before is not None:
            self.nodes.installation.wait_until_restarted(role, before)
        else:
            time.sleep(point.outage_seconds)
            killing.revive(self.nodes, point)

    def _wait(self, federation_id: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while federation(self.nodes, federation_id)["state"] not in FINAL_STATES:
            if time.monotonic() > deadline:
                raise Stuck(states(self.nodes, federation_id))
            time.sleep(POLLING_SECONDS)


def definition(algorithm: str) -> dict[str, Any]:
    """What differs from the usual federation of `tests.support.nodes`."""
    samples: Any = importlib.import_module(f"tests.federated.algorithms.{algorithm}.samples")
    return {
        "name": "chaos",
        "algorithm": algorithm,
        "config": samples.CONFIGS[0],
        "trainable": registry.algorithm(algorithm).example_trainable,
        "rounds": ROUNDS,
        "evaluation": {"every": 1},
    }


@contextmanager
def world(
    folder: Path, algorithm: str = "fedavg", deadline_seconds: float = DEADLINE_SECONDS, **settings: object
) -> Iterator[World]:
    """A running world over `folder`. `settings`: of the coordinator, beside those that chaos needs."""
    places()  # their servers start here, unwatched
    with gated() as gate, pytest.MonkeyPatch.context() as patch:
        for name, value in gate.environment.items():
            patch.setenv(name, value)
        with consortium(folder, NAMES, None, **SETTINGS, **settings) as nodes:
            yield World(nodes, gate, algorithm, deadline_seconds)
