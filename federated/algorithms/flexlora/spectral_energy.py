"""Spectral energy: metrics of the part of W that its truncation keeps.

`energy` is the squared norm of all adapted matrices before truncation, `energy_kept` the share of the kept ranks.
Factors are computed lazily, matrix by matrix, and the energies with them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

# By module: the squared norm after and before truncation.
Energies = dict[str, tuple[float, float]]


class RoundMetrics(Mapping[str, float]):
    """Metrics of the clients, and the energies. Reading them calls `make` for the modules that lack theirs."""

    def __init__(
        self, client_metrics: Mapping[str, float], energies: Energies, make: Mapping[str, Callable[[], object]]
    ) -> None:
        self._client_metrics = client_metrics
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
        return {
            **self._client_metrics,
            **energy_metrics([self._energies[module] for module in sorted(self._energies)]),
        }


def energy_metrics(energies: Sequence[tuple[float, float]]) -> dict[str, float]:
    """`energy` and `energy_kept` over some matrices. The share of no energy is 1."""
    total = math.fsum(energy for _, energy in energies)
    kept_energy = math.fsum(energy for energy, _ in energies)
    return {"energy": total, "energy_kept": kept_energy / total if total else 1.0}


def join_metrics(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The metrics of an aggregation from those of its shards."""
    first = dict(parts[0])
    energies = [(part["energy_kept"] * part["energy"], part["energy"]) for part in parts]
    lowest = [part["rank_min"] for part in parts if "rank_min" in part]
    highest = [part["rank_max"] for part in parts if "rank_max" in part]
    ranks = {"rank_min": min(lowest), "rank_max": max(highest)} if lowest else {}
    return first | ranks | energy_metrics(energies)
