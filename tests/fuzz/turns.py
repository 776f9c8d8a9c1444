"""One part's share of the time, and the examples that hypothesis draws for it: the same for the same seed."""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.record import Finding, Record


class TimeOver(KeyboardInterrupt):
    """The share is used up. An interruption is what hypothesis lets pass, and asks no more about."""


@dataclass
class Turn:
    """The share of the part of this name. `folder`: for whatever it keeps."""

    name: str
    seed: int
    seconds: float
    record: Record
    folder: Path
    batch: int = 0

    def begin(self) -> None:
        """Its time runs from now on: what it needs is there."""
        self._began = time.monotonic()

    @property
    def minutes(self) -> float:
        """How long it has run."""
        return (time.monotonic() - self._began) / 60

    @property
    def over(self) -> bool:
        """Whether its time is used up."""
        return self.minutes * 60 > self.seconds

    def check(self) -> None:
        """Raises TimeOver."""
        if self.over:
            raise TimeOver

    def batch_seed(self) -> int:
        """The seed of the next batch."""
        self.batch += 1
        return random.Random(f"{self.seed} {self.name} {self.batch}").getrandbits(64)

    def add(self, finding: Finding) -> None:
        """Records what was found in this batch."""
        self.record.add(finding, self.batch)

    def draw(self, example: Callable[[st.DataObject], None], examples: int, after_batch: Callable[[], None]) -> None:
        """One batch after the other of so many examples, until the time is over."""
        chosen = settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )

        def timed(data: st.DataObject) -> None:
            self.check()
            example(data)

        with suppress(TimeOver):
            while True:
                hypothesis.seed(self.batch_seed())(chosen(given(st.data())(timed)))()
                after_batch()
        after_batch()
