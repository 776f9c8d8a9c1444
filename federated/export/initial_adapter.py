"""An exported adapter as the place from which a federation goes on: the model that it was, whatever its scale.

The product of two factors counts times alpha over their rank, or over the root of it. An adapter says in its own
configuration which; a federation that has another scale begins with factors that make the same product.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from federated.contract import AnyTrainable, FederationRefused
from federated.payloads.payload import Payload
from federated.trainable import Lora, ModelFacts, peft_name

_NAME = re.compile(r"[\w.]+")


def initial_adapter(
    tensors: Payload, config: Mapping[str, Any] | None, model: ModelFacts, trainable: AnyTrainable
) -> Payload:
    """The tensors of an adapter by canonical name where this model has them; fact `scales`: module -> its scale.

    `tensors` is the file `adapter_model.safetensors`, `config` the other, `adapter_config.json`, of factors alone.
    Raises FederationRefused for a configuration that is missing or cannot be read.
    """
    names = {peft_name(tensor.name, trainable): tensor.name for tensor in (*model.tensors, *model.seeded)}
    canonical = {names.get(name, name): tensors.lazy(name) for name in tensors}
    if not isinstance(trainable, Lora):
        return Payload(canonical)
    modules = {name.partition(".lora_")[0] for name in canonical if ".lora_" in name}
    return Payload(canonical, {"scales": scales(config, modules)})


def scales(config: Mapping[str, Any] | None, modules: set[str]) -> dict[str, float]:
    """Module -> what PEFT multiplies the product of its factors with, by an adapter's configuration."""
    if config is None:
        raise FederationRefused("initial adapter: its scale was not noted; clone the federation, which notes it")
    found = {}
    for module in sorted(modules):
        rank = _of_module(config, "rank_pattern", module, config["r"])
        alpha = _of_module(config, "alpha_pattern", module, config["lora_alpha"])
        found[module] = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return found


def _of_module(config: Mapping[str, Any], field: str, module: str, otherwise: float) -> float:
    """The value of the first name that is the end of the module's, as PEFT takes it.

    Raises FederationRefused for a regular expression, which an earlier version wrote: it is not matched here.
    """
    for name, value in (config.get(field) or {}).items():
        if not _NAME.fullmatch(name):
            raise FederationRefused(f"initial adapter: its {field} has {name!r}, which is no name of a module")
        if module == name or module.endswith("." + name):
            return float(value)
    return otherwise
