"""Canonical names of a PEFT model's parameters: those of the bare model, and PEFT's own factors beside them."""

import re
from collections.abc import Collection

from federated.trainable import PROMPT_EMBEDDINGS

_PROMPT_PARAMETER = "prompt_encoder.default.embedding.weight"
_PEFT_COMPONENT = re.compile(r"\.(base_layer|modules_to_save\.default|default)(?=\.|$)")


def canonical_name(parameter: str, *, prefix: bool) -> str | None:
    """The canonical name of a parameter of a PEFT model, or None for a copy that is never used.

    `prefix`: the model is wrapped for a prefix, where the base model is one level higher than with LoRA.
    """
    if parameter == _PROMPT_PARAMETER:
        return PROMPT_EMBEDDINGS
    if ".original_module." in parameter:
        return None
    wrapping = "base_model." if prefix else "base_model.model."
    return _PEFT_COMPONENT.sub("", parameter.removeprefix(wrapping))


def lies_within(name: str, modules: Collection[str]) -> bool:
    """Whether a parameter or module lies inside one of `modules`, which are full names."""
    parts = name.split(".")
    return any(".".join(parts[:depth]) in modules for depth in range(1, len(parts)))
