"""The schedule of a federation as pure functions: cohorts, seeds of jobs, evaluation and stopping rules.

Coordinator and simulation call the same functions, so they get the same cohorts and seeds.
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
    size: int,
) -> tuple[int, ...]:
    """Sorted ordinals of a cohort: at most `size` of the clients alive whose update is not yet accepted.

    Clients that were `silent` in the last attempt are chosen last. The rank of an ordinal does not depend on the
    other clients, so the order of two clients is always the same.
    """
    last = set(silent)
    candidates = set(alive) - set(accepted)

    def rank(ordinal: int) -> tuple[bool, int, int]:
        return ordinal in last, _number("draw", seed, kind, number, attempt, ordinal), ordinal

    return tuple(sorted(sorted(candidates, key=rank)[: max(size, 0)]))


def job_seed(seed: int, kind: str, number: int, ordinal: int, purpose: str) -> int:
    """Seed of a client's job in [0, 2**63): a function of round and ordinal, independent of job id and attempt.

    `kind` is the round's ("prepare" | "train"), `purpose` the job's ("train" | "evaluate").
    """
    return _number("job", seed, kind, number, ordinal, purpose)


def evaluation_due(number: int, rounds: int, every: int | None) -> bool:
    """Whether an evaluation follows train round `number` (from 1): after each `every` rounds and the last."""
    return every is not None and (number % every == 0 or number >= rounds)


def stop_reason(
    history: Sequence[Mapping[str, float]],
    rounds: int,
    metric: str | None,
    target: float | None,
    patience: int | None,
) -> str | None:
    """ "target", "rounds" or "patience" if a federation ends after the train rounds of `history`, else None.

    Patience counts the rounds with a finite `metric` since the best one. Lower is better for a loss or perplexity,
    higher for all other metrics.
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
