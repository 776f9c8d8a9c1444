"""A loss's gradient and Hessian over some parameters, all of them as one vector."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Curvature:
    """`gradient`: (n,), detached; n: elements of all `parameters` end to end.

    Keeps the graph of `loss`: in attention it must have been computed without a fused kernel.
    """

    def __init__(self, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._gradient = _flat(torch.autograd.grad(loss, parameters, create_graph=True))
        self.gradient = self._gradient.detach()

    def times(self, vector: Tensor) -> Tensor:
        """The Hessian times `vector`, (n,) -> (n,). Raises RuntimeError where there is no second derivative."""
        return _flat(
            torch.autograd.grad(
                self._gradient,
                self._parameters,
                vector,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        )


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
