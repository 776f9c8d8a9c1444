"""Initial values of trainable tensors: a pure function of federation seed, tensor name, shape and initialization.

They are integers of the counter-based generator times one float32 factor, so all workers and the coordinator get the
same bits with any device or version of torch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from federated.maths.generator import Key, stream_key, words
from federated.trainable import TensorFacts

_CHUNK_ELEMENTS = 1 << 16
# Eight uniform bytes: mean 8 * 127.5, variance 8 * (256**2 - 1) / 12.
_BYTES_MEAN = 1020
_BYTES_VARIANCE = 43690


def start(seed: int, tensor: TensorFacts) -> Tensor:
    """The initial value of a tensor, float32 of its shape, on the CPU.

    `uniform` is in [-scale, scale) in steps of scale / 2**23. `normal` is the centered sum of eight 8-bit uniforms
    with standard deviation `scale`. `base` is zero, because such a tensor is sent as a difference.
    """
    count = math.prod(tensor.shape)
    kind, scale = tensor.initialisation.kind, tensor.initialisation.scale
    if kind in ("zeros", "base"):
        return torch.zeros(tensor.shape)
    draw = _uniform if kind == "uniform" else _normal
    key = stream_key(seed, tensor.name)
    values = torch.empty(count)
    for first in range(0, count, _CHUNK_ELEMENTS):
        part = values[first : first + _CHUNK_ELEMENTS]
        part.copy_(draw(key, first, part.numel(), scale))
    return values.reshape(tensor.shape)


def seeded_values(seed: int, tensors: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Initial values of tensors that are never sent, from their `TensorFacts` as JSON, for an exported adapter."""
    facts = [TensorFacts.model_validate(values) for values in tensors]
    return {tensor.name: start(seed, tensor) for tensor in facts}


def _uniform(key: Key, first: int, count: int, scale: float) -> Tensor:
    integers = (words(key, first, count) >> 8) - (1 << 23)
    return integers.float() * torch.tensor(scale / (1 << 23), dtype=torch.float32)


def _normal(key: Key, first: int, count: int, scale: float) -> Tensor:
    even, odd = words(key, 2 * first, 2 * count).reshape(count, 2).unbind(dim=1)
    # Bytes are added in two lanes of 16 bits, then the lanes: 8 * 255 fits.
    lanes = (even & 0x00FF00FF) + ((even >> 8) & 0x00FF00FF) + (odd & 0x00FF00FF) + ((odd >> 8) & 0x00FF00FF)
    integers = (lanes & 0xFFFF) + (lanes >> 16) - _BYTES_MEAN
    return integers.float() * torch.tensor(scale / math.sqrt(_BYTES_VARIANCE), dtype=torch.float32)
