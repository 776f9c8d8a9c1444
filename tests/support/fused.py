"""Stand-in for a fused kernel: an operation whose gradient cannot be differentiated, so that no Hessian exists."""

from typing import Any

import torch
from torch import Tensor


class Once(torch.autograd.Function):
    """Its input, differentiable once."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()
