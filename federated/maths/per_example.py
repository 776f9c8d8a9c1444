"""Gradients of single examples from one backward pass over a batch, by hooks on linear maps.

Of a linear map with an example's inputs A (tokens, in) and output gradients G (tokens, out), the gradient of its
weight is `G^T A`. All examples of a batch are told apart by their place in it, so the loss must be a sum over them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Called with the map's name, its inputs (examples, tokens, in) and output gradients (examples, tokens, out), float32.
Seen = Callable[[str, Tensor, Tensor], None]


def linear_maps(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> dict[str, nn.Linear]:
    """The modules whose weights these are, by the weights' names. Raises ValueError naming one of another kind."""
    names = {id(weight): name for name, weight in weights.items()}
    found = {
        names[id(module.weight)]: module
        for module in model.modules()
        if isinstance(module, nn.Linear) and id(module.weight) in names
    }
    for name in weights:
        if name not in found:
            raise ValueError(f"tensor {name!r} is not the weight of a linear map")
    return found


@contextmanager
def observed(maps: Mapping[str, nn.Linear], seen: Seen) -> Iterator[None]:
    """While the block runs, every backward pass tells inputs and output gradients of these maps, map by map."""
    hooks = [module.register_forward_hook(_telling(name, seen)) for name, module in maps.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def squared_norms(inputs: Tensor, gradients: Tensor) -> Tensor:
    """`|G^T A|^2` of each example, (examples,), by whichever of the two ways needs fewer multiplications.

    inputs: (examples, tokens, in), gradients: (examples, tokens, out). The other way is `sum((G G^T) * (A A^T))`.
    """
    tokens, width, out = inputs.shape[1], inputs.shape[2], gradients.shape[2]
    if tokens * (width + out) < width * out:
        grams = (gradients @ gradients.mT) * (inputs @ inputs.mT)
        return grams.sum(dim=(1, 2))
    return squared_rows(inputs, gradients).sum(dim=1)


def squared_rows(inputs: Tensor, gradients: Tensor) -> Tensor:
    """Squared norm of each row (output) of each example's `G^T A`: (examples, out)."""
    return (gradients.mT @ inputs).square().sum(dim=2)


def _telling(name: str, seen: Seen) -> Callable[[nn.Module, Any, Tensor], None]:
    def forward(_: nn.Module, given: Any, output: Tensor) -> None:
        if not output.requires_grad:
            return
        inputs = given[0].detach()

        def backward(gradient: Tensor) -> None:
            seen(name, _per_token(inputs), _per_token(gradient))

        output.register_hook(backward)  # type: ignore[no-untyped-call]

    return forward


def _per_token(values: Tensor) -> Tensor:
    """(examples, tokens, width), float32; a map applied once an example has one token."""
    return values.detach().to(torch.float32).reshape(len(values), -1, values.shape[-1])
