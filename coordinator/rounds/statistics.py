"""Statistics over what the clients of a round sent."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

OUTLIER = 100.0


def outliers(norms: Mapping[int, float]) -> list[int]:
    """Ordinals whose update's norm is more than OUTLIER times the median of the others', of at least two others.

    Where most did not move at all, nobody is far from them.
    """
    ordinals = []
    for ordinal, norm in sorted(norms.items()):
        others = [other for key, other in norms.items() if key != ordinal]
        if len(others) >= 2 and 0 < statistics.median(others) < norm / OUTLIER:
            ordinals.append(ordinal)
    return ordinals


def omission(norms: Mapping[int, float], works: Callable[[Collection[int]], bool]) -> list[int] | None:
    """The clients to leave out so that an aggregation that failed `works`.

    A single client is tried first, in the order of their norms, the largest at the start; then the two largest, the
    three largest and so on. None if it works with everybody, or never: then the failure is not due to the updates.
    """
    largest = sorted(norms, key=lambda ordinal: (-norms[ordinal], ordinal))
    if works(()):
        return None
    choices = [[ordinal] for ordinal in largest] if len(largest) > 1 else []
    choices += [sorted(largest[:count]) for count in range(2, len(largest))]
    return next((choice for choice in choices if works(choice)), None)


def metrics_of(evaluations: Sequence[Mapping[str, Mapping[str, float]]], names: Collection[str]) -> dict[str, float]:
    """Means over clients, weighted by their `examples`: of the shared model as they are, of their own as `own_…`.

    A metric counts if it is one of `names`, where a client gave it as a finite number. Other names are the clients'
    own, and among them may be those under which the coordinator keeps what it counted itself.
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
    """Why a job brought nothing: the code, and of an unforeseen error its type and place; never a text of a node."""
    if code is None or error is None:
        return code
    return f"{code} ({error} at {place})" if place is not None else f"{code} ({error})"


def most_frequent(reasons: Mapping[int, str]) -> tuple[str, int] | None:
    """The reason that most have, and how many; of equally frequent ones the first by ordinal. None without any."""
    counts = Counter(reason for _, reason in sorted(reasons.items()))
    return next(iter(counts.most_common(1)), None)
