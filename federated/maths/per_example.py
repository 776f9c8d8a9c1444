"""Per-example gradients from one backward pass over a batch, by hooks on linear maps.

For an example's inputs A (tokens, in) and output gradients G (tokens, out) of a linear map, the gradient of its
weight is `G^T A`. Hooks identify examples by their position in the batch, so the loss must be a sum over examples.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Called with the map's name, its inputs (examples, tokens, in) and output gradients (examples, tokens, out), float32.
Observer = Callable[[str, Tensor, Tensor], None]


def linear_maps(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> dict[str, nn.Linear]:
    """The linear modules of these weights, by name. Raises ValueError for the weight of another kind of module."""
    names = {id(weight): name for name, weight in weights.items()}
    maps = {
        names[id(module.weight)]: module
        for module in model.modules()
        if isinstance(module, nn.Linear) and id(module.weight) in names
    }
    for name in weights:
        if name not in maps:
            raise ValueError(f"tensor {name!r} is not the weight of a linear map")
    return maps


@contextmanager
def observe(maps: Mapping[str, nn.Linear], observer: Observer) -> Iterator[None]:
    """Context in which each backward pass calls `observer` with inputs and output gradients of each of these maps."""
    hooks = [module.register_forward_hook(_forward_hook(name, observer)) for name, module in maps.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def squared_norms(inputs: Tensor, gradients: Tensor) -> Tensor:
    """`|G^T A|^2` of each example: (examples,).

    inputs: (examples, tokens, in), gradients: (examples, tokens, out). If that needs fewer multiplications, it is
    computed as `sum((G G^T) * (A A^T))`.
    """
    tokens, width, out = inputs.shape[1], inputs.shape[2], gradients.shape[2]
    if tokens * (width + out) < width * out:
        grams = (gradients @ gradients.mT) * (inputs @ inputs.mT)
        return grams.sum(dim=(1, 2))
    return squared_rows(inputs, gradients).sum(dim=1)


def squared_rows(inputs: Tensor, gradients: Tensor) -> Tensor:
    """Squared norm of each row (output) of each example's `G^T A`: (examples, out)."""
    return (gradients.mT @ inputs).square().sum(dim=2)


def _forward_hook(name: str, observer: Observer) -> Callable[[nn.Module, Any, Tensor], None]:
    def forward(_: nn.Module, arguments: Any, output: Tensor) -> None:
        if not output.requires_grad:
            return
        inputs = arguments[0].detach()

        def backward(gradient: Tensor) -> None:
            observer(name, _per_token(inputs), _per_token(gradient))

        output.register_hook(backward)  # type: ignore[no-untyped-call]

    return forward


def _per_token(values: Tensor) -> Tensor:
    """Values as (examples, tokens, width), float32. A map that is applied once per example has one token."""
    return values.detach().to(torch.float32).reshape(len(values), -1, values.shape[-1])
