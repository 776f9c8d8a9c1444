"""Gradient and Hessian-vector products of a loss, with all parameters as one vector."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Curvature:
    """Gradient of a loss, and products with its Hessian. `gradient`: (n,), detached, n elements in all `parameters`.

    Keeps the graph of `loss`, and sets `.grad` on all its leaves. Raises RuntimeError if a function of the model can
    be differentiated only once. For a subset of inputs, torch would ignore such a function silently, and the products
    would be wrong.
    """

    def __init__(self, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._gradient = _flat(torch.autograd.grad(loss, parameters, create_graph=True))
        self.gradient = self._gradient.detach()
        torch.autograd.backward(self._gradient, torch.ones_like(self.gradient), retain_graph=True)

    def times(self, vector: Tensor) -> Tensor:
        """The Hessian times `vector`, (n,) -> (n,)."""
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
