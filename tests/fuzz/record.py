"""The record of a run: findings, each printed as it is made, and counts of what was tried."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["5xx", "answer", "canary", "log", "growth", "stuck", "ended", "broken"]
"""`answer`: otherwise than the document says; `ended`: a process is no more; `broken`: a rule of the life cycles."""
MOST_ALIKE = 3
MOST_CHARACTERS = 4_000


@dataclass(frozen=True)
class Finding:
    """Something that must not be. `at`: which of the seed's batches, and how often of those alike.

    `sent` is enough to send it again; `about` names the fault in few words, the same for all alike.
    """

    kind: Kind
    who: str
    about: str
    sent: Any
    came: str


@dataclass
class Record:
    """`say` prints one line. `requests`: who asked -> status class -> how often."""

    seed: int
    say: Callable[[dict[str, Any]], None]
    findings: Counter[tuple[Kind, str, str]] = field(default_factory=Counter)
    requests: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    ends: Counter[str] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)
    growth_mib: dict[str, float] = field(default_factory=dict)

    def answered(self, who: str, status: int) -> None:
        """Counts a request."""
        self.requests[who][f"{status // 100}xx"] += 1

    def add(self, finding: Finding, batch: int = 0) -> None:
        """Prints it, unless enough of those alike were printed."""
        key = (finding.kind, finding.who, finding.about)
        self.findings[key] += 1
        if self.findings[key] <= MOST_ALIKE:
            self.say(
                {
                    "finding": finding.kind, "who": finding.who, "about": finding.about, "seed": self.seed,
                    "batch": batch, "sent": finding.sent, "came": finding.came[:MOST_CHARACTERS],
                }
            )  # fmt: skip

    def summary(self, minutes: float) -> dict[str, Any]:
        """The whole in numbers."""
        return {
            "minutes": round(minutes, 2),
            "seed": self.seed,
            "requests": {who: dict(sorted(counts.items())) for who, counts in sorted(self.requests.items())},
            "lives": dict(sorted(self.ends.items())),
            "jobs": dict(sorted(self.jobs.items())),
            "growth_mib": self.growth_mib,
            "findings": sum(self.findings.values()),
        }


def one_line(told: dict[str, Any]) -> str:
    """A JSON line; what JSON cannot carry is shown as Python would."""
    return json.dumps(told, default=repr)
