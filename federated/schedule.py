"""Who is drawn, with which seed, when evaluation is due and when to stop: pure functions for both runners.

Coordinator and simulation call the same functions, so they draw the same cohorts and seeds.
"""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence

_LOWER_IS_BETTER = ("loss", "perplexity")


def draw(
    seed: int,
    kind: str,
    number: int,
    attempt: int,
    alive: Collection[int],
    silent: Collection[int],
    accepted: Collection[int],
    wanted: int,
) -> tuple[int, ...]:
    """Ordinals of a cohort, sorted: at most `wanted` of those alive whose update was not accepted already.

    Those `silent` in the last attempt come after all others. Every ordinal has a rank of its own, so who else is
    alive does not change the order between two of them.
    """
    asked_before = set(silent)
    candidates = set(alive) - set(accepted)

    def rank(ordinal: int) -> tuple[bool, int, int]:
        return ordinal in asked_before, _number("draw", seed, kind, number, attempt, ordinal), ordinal

    return tuple(sorted(sorted(candidates, key=rank)[: max(wanted, 0)]))


def job_seed(seed: int, kind: str, number: int, ordinal: int, purpose: str) -> int:
    """Seed of a client's job in [0, 2**63): a function of round and ordinal, never of job id or attempt.

    `kind` is the round's ("prepare" | "train"), `purpose` the job's ("train" | "evaluate").
    """
    return _number("job", seed, kind, number, ordinal, purpose)


def evaluation_due(number: int, rounds: int, every: int | None) -> bool:
    """Whether train round `number` (from 1) is followed by an evaluation: each `every` rounds and the last."""
    return every is not None and (number % every == 0 or number >= rounds)


def stop_reason(
    history: Sequence[Mapping[str, float]],
    rounds: int,
    metric: str | None,
    target: float | None,
    patience: int | None,
) -> str | None:
    """ "target", "rounds" or "patience" if a federation ends after the finished train rounds of `history`, or None.

    Patience counts the rounds that have a finite `metric` since its best one. A loss or perplexity is better lower,
    everything else higher.
    """
    values = [row[metric] for row in history if metric in row and math.isfinite(row[metric])] if metric else []
    sign = -1.0 if metric and metric.endswith(_LOWER_IS_BETTER) else 1.0
    scores = [sign * value for value in values]
    if scores and target is not None and scores[-1] >= sign * target:
        return "target"
    if len(history) >= rounds:
        return "rounds"
    if scores and patience is not None and len(scores) - 1 - scores.index(max(scores)) >= patience:
        return "patience"
    return None


def _number(*parts: object) -> int:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
