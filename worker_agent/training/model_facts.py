"""What is said of a model with a trainable on it: names, shapes and starts, and never a weight."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from federated.contract import AnyTrainable
from federated.trainable import PROMPT_EMBEDDINGS, Initialization, Prefix, TensorFacts

_BASE = Initialization(kind="base")
_ZEROS = Initialization(kind="zeros")


def is_drawn(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter that the files lack is drawn or zero; a norm's scale is one wherever it is made."""
    return len(shape) > 1 or name.endswith("bias")


def initialisation(
    name: str, shape: tuple[int, ...], trainable: AnyTrainable, new: Collection[str], head_std: float
) -> Initialization:
    """How a tensor starts: LoRA's factors as PEFT draws them, what the files lack as the model draws it."""
    if name == PROMPT_EMBEDDINGS and isinstance(trainable, Prefix):
        return Initialization(kind="normal", scale=trainable.init_std)
    if name.endswith(".lora_A.weight"):
        # kaiming_uniform_(a=sqrt(5)) is uniform within 1 / sqrt(inputs).
        return Initialization(kind="uniform", scale=1 / math.sqrt(math.prod(shape[1:])))
    if name.endswith(".lora_embedding_B"):
        return Initialization(kind="normal", scale=1.0)
    if name.endswith((".lora_B.weight", ".lora_embedding_A")):
        return _ZEROS
    if name not in new or not is_drawn(name, shape):
        return _BASE
    return _ZEROS if name.endswith("bias") else Initialization(kind="normal", scale=head_std)


def tensor_facts(tensors: Mapping[str, Tensor], starts: Mapping[str, Initialization]) -> tuple[TensorFacts, ...]:
    """Facts of these tensors, in their order; they are trained, sent and stored as float32."""
    return tuple(
        TensorFacts(name=name, shape=tuple(value.shape), dtype="F32", initialisation=starts[name])
        for name, value in tensors.items()
    )


def shape_of(base: PreTrainedModel) -> dict[str, Any]:
    """Layers, hidden width, and number and joint width of the key-value heads (fewer where queries share them)."""
    config = base.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return {
        "model_type": base.config.model_type,
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "kv_heads": kv_heads,
        "kv_width": kv_heads * head_width,
    }


def new_weight_std(base: PreTrainedModel) -> float:
    """The standard deviation with which the model's own code draws a new weight."""
    return float(getattr(base.config.get_text_config(), "initializer_range", 0.02))
