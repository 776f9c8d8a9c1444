"""Rules that must hold of a federation in which the last of three workers is hostile."""

from dataclasses import dataclass, field
from typing import Any

import torch

from coordinator.models import Job
from tests.coordinator.life_cycles import Watch

MALLORY = 2
"""The hostile worker's place among the three, and its ordinal."""


@dataclass
class HostileWatch(Watch):
    """`honest`: clients that do all of their work well."""

    honest: set[str] = field(default_factory=set)
    factors: dict[int, torch.Tensor] = field(default_factory=dict)

    def _adapter(self, number: int, of: list[int]) -> None:
        """Finite, whoever took part; of the honest alone, one step of their mean away from the last."""
        stored = self.stored_adapter(number)
        assert all(bool(torch.isfinite(stored[name]).all()) for name in stored), "an adapter that is not finite"
        self.adapters[number] = 0.0
        factor = next(stored[name] for name in stored if "lora_B" in name)
        before = self.factors.get(number - 1, torch.zeros_like(factor))
        self.factors[number] = factor
        if MALLORY not in of and before.shape == factor.shape:
            slack = 1e-5 * max(1.0, float(factor.abs().max()))
            assert float((factor - before - self.mean(of)).abs().max()) <= slack, "not what the honest handed in"

    def _job(self, job: Job, shown: Any) -> None:
        super()._job(job, shown)
        assert job.state != "rejected" or job.client_id not in self.honest, job.problem
