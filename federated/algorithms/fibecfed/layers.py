"""Assignment of trained tensors to layers, by their names."""

import re
from collections.abc import Iterable

from federated.algorithm_kit.shared_tensors import last_linear_names
from federated.contract import FederationRefused
from federated.trainable import ModelFacts, TensorFacts

_LAYER_NUMBER = re.compile(r"^(.*?)\.?\b(\d+)\.")


def layer_tensors(model: ModelFacts) -> dict[int, list[str]]:
    """Names of the factors of each layer that has any, lowest first.

    The first number in a name is the layer. Raises FederationRefused, with the adapted modules, if no factor's name
    has a number, if the numbers follow different prefixes, or if a number is no layer of this model.
    """
    names_by_layer: dict[int, list[str]] = {}
    prefixes = set()
    for name in _factors(model.tensors):
        match = _LAYER_NUMBER.match(name)
        if match is not None:
            prefixes.add(match[1])
            names_by_layer.setdefault(int(match[2]), []).append(name)
    if len(prefixes) != 1 or max(names_by_layer) >= model.layers:
        raise FederationRefused(
            f"the layers of this model cannot be told apart; adapted are: {_modules(model.tensors)}"
        )
    return dict(sorted(names_by_layer.items()))


def first_factors(names: Iterable[str]) -> list[str]:
    """Those of the factors that are applied first (A)."""
    return [name for name in names if name.endswith(".lora_A.weight")]


def rest_of_head(model: ModelFacts) -> list[str]:
    """Names of the head's trained tensors outside of its last linear map."""
    head = [tensor for tensor in model.tensors if ".lora_" not in tensor.name]
    last = last_linear_names(head)
    return [tensor.name for tensor in head if tensor.name not in last]


def _factors(tensors: Iterable[TensorFacts]) -> list[str]:
    return [tensor.name for tensor in tensors if ".lora_A." in tensor.name or ".lora_B." in tensor.name]


def _modules(tensors: Iterable[TensorFacts]) -> str:
    modules = sorted({tensor.name.partition(".lora_")[0] for tensor in tensors})
    return ", ".join(modules[:8]) + (f" and {len(modules) - 8} more" if len(modules) > 8 else "")
