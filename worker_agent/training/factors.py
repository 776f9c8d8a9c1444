"""LoRA factors of one adapted module. Their rank and scale can be changed for a job and restored after it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from worker_agent.training.parameter_names import canonical_name

_ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class Factors:
    """`a` (rank, in) and `b` (out, rank) of one module; `rank`, `alpha` and `scaling` are its original ones."""

    module: str
    layer: Any
    a: nn.Parameter
    b: nn.Parameter
    rank: int
    alpha: float
    scaling: float

    def resize(self, rank: int, scaling: float) -> None:
        """Change rank and scale; the values are undefined afterwards. Raises ValueError."""
        if rank < 1:
            raise ValueError(f"module {self.module!r}: rank {rank} is below 1")
        if self.a.dim() != 2:
            raise ValueError(f"module {self.module!r}: only linear maps and embeddings can change their rank")
        self._set(rank, scaling * rank, scaling)

    def restore(self) -> None:
        """Reset rank and scale; the values are undefined if these had changed."""
        self._set(self.rank, self.alpha, self.scaling)

    def _set(self, rank: int, alpha: float, scaling: float) -> None:
        if len(self.a) != rank:
            # The parameters stay the same objects, which session, optimizer and model share. They are NaN until
            # set, so that a missing value shows at once.
            self.a.data = self.a.data.new_full((rank, *self.a.shape[1:]), torch.nan)
            self.b.data = self.b.data.new_full((self.b.shape[0], rank), torch.nan)
            self.a.grad = self.b.grad = None
        self.layer.r[_ADAPTER] = rank
        self.layer.lora_alpha[_ADAPTER] = alpha
        self.layer.scaling[_ADAPTER] = scaling


def factors_of(model: nn.Module) -> Mapping[str, Factors]:
    """All adapted modules of a PEFT model by canonical name; empty for a model without LoRA."""
    factors = {}
    for name, layer in model.named_modules():
        module = canonical_name(name, prefix=False)
        if module is not None and isinstance(layer, LoraLayer) and _ADAPTER in layer.r:
            a, b = _pair(layer)
            scaling = float(layer.scaling[_ADAPTER])
            factors[module] = Factors(module, layer, a, b, layer.r[_ADAPTER], layer.lora_alpha[_ADAPTER], scaling)
    return factors


def _pair(layer: Any) -> tuple[nn.Parameter, nn.Parameter]:
    if _ADAPTER in layer.lora_embedding_A:
        return layer.lora_embedding_A[_ADAPTER], layer.lora_embedding_B[_ADAPTER]
    return layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
