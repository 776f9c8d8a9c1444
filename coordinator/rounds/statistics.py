"""Statistics over the clients of a round: outliers, omissions, mean metrics and reasons of losses."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

OUTLIER = 100.0


def outliers(norms: Mapping[int, float]) -> list[int]:
    """Ordinals whose update's norm is more than OUTLIER times the median of at least two others.

    There are no outliers if that median is zero.
    """
    ordinals = []
    for ordinal, norm in sorted(norms.items()):
        others = [other for key, other in norms.items() if key != ordinal]
        if len(others) >= 2 and 0 < statistics.median(others) < norm / OUTLIER:
            ordinals.append(ordinal)
    return ordinals


def omission(norms: Mapping[int, float], works: Callable[[Collection[int]], bool]) -> list[int] | None:
    """The clients to leave out so that an aggregation that failed `works`.

    Single clients are tried first, the largest norm at the start. The two largest follow, the three largest and so
    on. None if it works with everybody, or never: then the failure is not due to the updates.
    """
    largest = sorted(norms, key=lambda ordinal: (-norms[ordinal], ordinal))
    if works(()):
        return None
    choices = [[ordinal] for ordinal in largest] if len(largest) > 1 else []
    choices += [sorted(largest[:count]) for count in range(2, len(largest))]
    return next((choice for choice in choices if works(choice)), None)


def metrics_of(evaluations: Sequence[Mapping[str, Mapping[str, float]]], names: Collection[str]) -> dict[str, float]:
    """Means over clients, weighted by their `examples`. Those of the clients' own models are named `own_…`.

    Only the metrics in `names` count, and of them only finite numbers. Clients choose other names freely, also those
    under which the coordinator stores its own counts.
    """
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    for views in evaluations:
        for view, values in views.items():
            weight = values.get("examples", 0.0)
            for name, value in values.items():
                if name in names and weight > 0 and math.isfinite(value):
                    key = name if view == "shared" else f"{view}_{name}"
                    sums[key] = sums.get(key, 0.0) + weight * value
                    weights[key] = weights.get(key, 0.0) + weight
    return {key: sums[key] / weights[key] for key in sorted(sums)}


def reason(code: str | None, error: str | None, place: str | None) -> str | None:
    """The reason of a lost job: the code, with type and place of an unforeseen error. Never text from a node."""
    if code is None or error is None:
        return code
    return f"{code} ({error} at {place})" if place is not None else f"{code} ({error})"


def most_frequent(reasons: Mapping[int, str]) -> tuple[str, int] | None:
    """The most frequent reason and its count. Of equally frequent ones it is the first by ordinal."""
    counts = Counter(reason for _, reason in sorted(reasons.items()))
    return next(iter(counts.most_common(1)), None)
