"""SIGKILL at random points of a round, as many as wished: a JSON line for each, and a summary.

Every run of a seed has the same points in the same order, so a run that was broken off goes on with `--start`. On
PostgreSQL, Redis and S3 by default; `--on sqlite` is one machine over files, where redis and postgres have no part.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from tests.chaos.points import SERVERS, VICTIMS, Point, drawn
from tests.chaos.running import DEADLINE_SECONDS, MOST_CHARACTERS, NAMES, Outcome, Undisturbed, World, world
from tests.support.places import VARIABLE


class Series:
    """Points one after the other; after one that failed the next has an installation of its own."""

    def __init__(self, folder: Path, algorithm: str, deadline_seconds: float) -> None:
        self._folder, self._algorithm, self._deadline_seconds = folder, algorithm, deadline_seconds
        self._running = ExitStack()
        self._world: World | None = None
        self._undisturbed: Undisturbed | None = None
        self._worlds = 0

    def run(self, point: Point) -> Outcome:
        """One point. Raises what keeps the very first installation from an undisturbed run."""
        try:
            at, undisturbed = self._open()
        except Exception as error:
            self.close()
            if self._undisturbed is None:
                raise
            return Outcome("broken", 0, 0.0, {"error": repr(error)[:MOST_CHARACTERS]})
        outcome = at.run(point, undisturbed)
        if not outcome.passed:
            self._abandon(at, outcome)
        return outcome

    def close(self) -> None:
        """Ends what runs."""
        self._world = None
        try:
            self._running.close()
        except Exception as error:  # what does not end must not keep the next point from its turn
            print(f"not ended: {error!r}", file=sys.stderr)

    def _open(self) -> tuple[World, Undisturbed]:
        if self._world is None:
            self._worlds += 1
            place = self._folder / str(self._worlds)
            place.mkdir()
            self._world = self._running.enter_context(world(place, self._algorithm, self._deadline_seconds))
            if self._undisturbed is None:
                undisturbed = self._world.undisturbed()
                assert undisturbed.record["state"] == "completed", undisturbed.record
                assert not undisturbed.never(), undisturbed.never()
                self._undisturbed = undisturbed
        assert self._undisturbed is not None
        return self._world, self._undisturbed

    def _abandon(self, at: World, outcome: Outcome) -> None:
        (self._folder / str(self._worlds) / "story.txt").write_text(at.nodes.story(), encoding="utf-8")
        outcome.told["folder"] = str(self._folder / str(self._worlds))
        self.close()


def chosen(arguments: argparse.Namespace) -> Iterator[tuple[int, Point]]:
    """The points of the seed from `--start` on, numbered from 0; the matrix is drawn anew when it is used up."""
    victims = [victim for victim in VICTIMS if arguments.on == "postgresql" or victim not in SERVERS]
    numbered = enumerate(_endless(arguments.seed, victims))
    return islice(numbered, arguments.start, arguments.start + arguments.count)


def _endless(seed: int, victims: Sequence[Any]) -> Iterator[Point]:
    while True:
        yield from drawn(seed, victims, len(NAMES))
        seed += 1_000_003


def line(seed: int, number: int, point: Point, outcome: Outcome) -> dict[str, Any]:
    """What is told of a point."""
    told: dict[str, Any] = {
        "seed": seed, "point": number, "step": point.step.name, "occurrence": outcome.occurrence,
        "process": point.victim, "outcome": outcome.result, "seconds": round(outcome.seconds, 1),
    }  # fmt: skip
    return told | ({"told": outcome.told} if outcome.told else {})


def summary(lines: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What came of all of them."""
    failed = [told["point"] for told in lines if told["outcome"] != "same"]
    return {
        "points": len(lines),
        "same": len(lines) - len(failed),
        "failed": failed,
        "processes": dict(sorted(Counter(told["process"] for told in lines).items())),
        "steps": len({told["step"] for told in lines}),
        "seconds": round(seconds, 1),
    }


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # nothing of it may be left running
    os.environ[VARIABLE] = arguments.on
    folder = Path(tempfile.mkdtemp(prefix="fedloom-chaos-run-"))
    began, lines = time.monotonic(), []
    series = Series(folder, arguments.algorithm, arguments.deadline)
    with ExitStack() as files:
        outputs = [sys.stdout]
        if arguments.json:
            outputs.append(files.enter_context(arguments.json.open("a", encoding="utf-8")))
        try:
            for number, point in chosen(arguments):
                lines.append(line(arguments.seed, number, point, series.run(point)))
                _say(outputs, lines[-1])
        finally:
            series.close()
            _say(outputs, {"summary": summary(lines, time.monotonic() - began)})
    if any(told["outcome"] != "same" for told in lines):
        return 1
    shutil.rmtree(folder)
    return 0


def _say(outputs: Sequence[TextIO], told: dict[str, Any]) -> None:
    for output in outputs:
        print(json.dumps(told), file=output, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10, help="how many points")
    parser.add_argument("--start", type=int, default=0, help="number of the first point of the seed's order")
    parser.add_argument("--on", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--algorithm", default="fedavg")
    parser.add_argument("--deadline", type=float, default=DEADLINE_SECONDS, help="seconds that a point may take")
    parser.add_argument("--json", type=Path, help="a file that the lines are added to")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
