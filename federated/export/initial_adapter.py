"""Initial adapter: reader for an exported adapter from which a federation starts.

The product of two factors is scaled by alpha over their rank, or over the square root of the rank. The adapter's
configuration determines its scale. A federation with another scale starts from factors with the same scaled product.
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
    """The tensors of an adapter, by canonical name where this model has them. Fact `scales`: module -> its scale.

    `tensors` is the file `adapter_model.safetensors`, `config` is `adapter_config.json`, needed for LoRA factors
    only. Raises FederationRefused for a missing or unreadable configuration.
    """
    names = {peft_name(tensor.name, trainable): tensor.name for tensor in (*model.tensors, *model.seeded)}
    canonical = {names.get(name, name): tensors.lazy(name) for name in tensors}
    if not isinstance(trainable, Lora):
        return Payload(canonical)
    modules = {name.partition(".lora_")[0] for name in canonical if ".lora_" in name}
    return Payload(canonical, {"scales": scales(config, modules)})


def scales(config: Mapping[str, Any] | None, modules: set[str]) -> dict[str, float]:
    """PEFT's scale of the product of factors, by module, from an adapter's configuration."""
    if config is None:
        raise FederationRefused("initial adapter: its scale was not recorded; clone the federation, which records it")
    by_module = {}
    for module in sorted(modules):
        rank = _of_module(config, "rank_pattern", module, config["r"])
        alpha = _of_module(config, "alpha_pattern", module, config["lora_alpha"])
        by_module[module] = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return by_module


def _of_module(config: Mapping[str, Any], field: str, module: str, otherwise: float) -> float:
    """The value of the first name that is the end of the module's name, as in PEFT.

    Raises FederationRefused for a regular expression, which earlier versions wrote: it is not supported here.
    """
    for name, value in (config.get(field) or {}).items():
        if not _NAME.fullmatch(name):
            raise FederationRefused(f"initial adapter: its {field} has {name!r}, which is no name of a module")
        if module == name or module.endswith("." + name):
            return float(value)
    return otherwise
