"""What a fused kernel is to a Hessian: a step whose gradient has no gradient."""

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
