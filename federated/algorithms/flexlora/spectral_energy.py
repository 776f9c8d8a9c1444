"""How much of W is kept: metrics of a round that are known when its factors are.

`energy` is the squared norm of all adapted matrices before they were cut, `energy_kept` the share that the kept
ranks hold. Factors are made lazily, matrix by matrix, so the numbers come with them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

# Of each module: the squared norm that was kept, and all of it.
Energies = dict[str, tuple[float, float]]


class RoundMetrics(Mapping[str, float]):
    """Metrics told by clients, and the energies, for which `make` is called on modules not worked out yet."""

    def __init__(
        self, told: Mapping[str, float], energies: Energies, make: Mapping[str, Callable[[], object]]
    ) -> None:
        self._told = told
        self._energies = energies
        self._make = make

    def __getitem__(self, name: str) -> float:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, float]:
        for module, make in self._make.items():
            if module not in self._energies:
                make()
        return {**self._told, **summed([self._energies[module] for module in sorted(self._energies)])}


def summed(energies: Sequence[tuple[float, float]]) -> dict[str, float]:
    """`energy` and `energy_kept` over some matrices; all of nothing is kept."""
    total = math.fsum(all_of_it for _, all_of_it in energies)
    kept = math.fsum(kept for kept, _ in energies)
    return {"energy": total, "energy_kept": kept / total if total else 1.0}


def joined(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The metrics of shards of one aggregation as those of the whole."""
    first = dict(parts[0])
    energies = [(part["energy_kept"] * part["energy"], part["energy"]) for part in parts]
    lowest = [part["rank_min"] for part in parts if "rank_min" in part]
    highest = [part["rank_max"] for part in parts if "rank_max" in part]
    ranks = {"rank_min": min(lowest), "rank_max": max(highest)} if lowest else {}
    return first | ranks | summed(energies)
