"""Which trained tensor belongs to which layer, from names alone."""

import re
from collections.abc import Iterable

from federated.algorithm_kit.shared_tensors import last_linear_names
from federated.contract import FederationRefused
from federated.trainable import ModelFacts, TensorFacts

_NUMBERED = re.compile(r"^(.*?)\.?\b(\d+)\.")


def layer_tensors(model: ModelFacts) -> dict[int, list[str]]:
    """Names of the factors of each layer that has any, lowest first.

    The first number in a name counts the layers. Raises ValueError, with the modules seen, if no factor's name has a
    number, if they count from more than one place, or if a number is no layer of this model.
    """
    found: dict[int, list[str]] = {}
    places = set()
    for name in _factors(model.tensors):
        numbered = _NUMBERED.match(name)
        if numbered is not None:
            places.add(numbered[1])
            found.setdefault(int(numbered[2]), []).append(name)
    if len(places) != 1 or max(found) >= model.layers:
        raise FederationRefused(
            f"the layers of this model cannot be told apart; adapted are: {_modules(model.tensors)}"
        )
    return dict(sorted(found.items()))


def first_factors(names: Iterable[str]) -> list[str]:
    """Of these factors those that are applied first (A)."""
    return [name for name in names if name.endswith(".lora_A.weight")]


def rest_of_head(model: ModelFacts) -> list[str]:
    """The head's trained tensors that are not those of its last map."""
    head = [tensor for tensor in model.tensors if ".lora_" not in tensor.name]
    last = last_linear_names(head)
    return [tensor.name for tensor in head if tensor.name not in last]


def _factors(tensors: Iterable[TensorFacts]) -> list[str]:
    return [tensor.name for tensor in tensors if ".lora_A." in tensor.name or ".lora_B." in tensor.name]


def _modules(tensors: Iterable[TensorFacts]) -> str:
    modules = sorted({tensor.name.partition(".lora_")[0] for tensor in tensors})
    return ", ".join(modules[:8]) + (f" and {len(modules) - 8} more" if len(modules) > 8 else "")
