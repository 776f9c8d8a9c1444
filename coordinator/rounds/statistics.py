"""Statistics over what the clients of a round sent."""

import math
from collections.abc import Collection, Mapping, Sequence


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
