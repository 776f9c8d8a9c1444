"""Sampler of K fixed directions over named tensors, the same on every worker: Hadamard, Rademacher or Gaussian.

An element of a direction is a function of (seed, kind, K for Hadamard, direction, tensor name, element index) alone.
The names are canonical, so a wrapped model has the directions of the bare one, with any dtype.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from federated.maths.explicit_directions import Gaussian, Rademacher
from federated.maths.generator import stream_key, words
from federated.maths.hadamard import Hadamard

Kind = Literal["hadamard", "rademacher", "gaussian"]

_PROBE = "probe"
_PROBE_SEED = 20_240_606
_PROBE_BOUND = 8
# Explicit directions are computed one by one, so their probe is short.
_EXPLICIT_PROBE_ELEMENTS = 80


class Direction(Protocol):
    """One direction over the tensors of a field."""

    def values(self, name: str) -> Tensor:
        """The direction over one tensor: (elements,) float32."""

    def move(self, scale: float, begin: Mapping[str, Tensor], out: Mapping[str, Tensor]) -> None:
        """`out = begin + scale * direction` for every tensor: flat float32, `out` may be `begin`."""

    def follow(
        self, last: Any, step: float, scale: float, clean: Mapping[str, Tensor], out: Mapping[str, Tensor]
    ) -> None:
        """`clean += step * last`, then `out = clean + scale * direction`. `last` is from the same field.

        The bits are those of two moves. On a CPU it takes a single pass over memory.
        """


class Field(Protocol):
    """All directions over some tensors on one device."""

    def direction(self, index: int) -> Direction:
        """One of the directions. Raises IndexError."""

    def combination(self, name: str, coefficients: Tensor) -> Tensor:
        """`sum_j coefficients[j] z_j` over one tensor: (K,) -> (elements,), in the dtype of the coefficients."""

    def subtract(self, coefficients: Tensor, values: Mapping[str, Tensor]) -> None:
        """`values -= combination` for every tensor of the field: flat, in the dtype of the coefficients."""


class Directions(Protocol):
    """`count` directions of one seed, over any tensors."""

    @property
    def seed(self) -> int: ...
    @property
    def count(self) -> int: ...

    def over(self, sizes: Mapping[str, int], device: torch.device) -> Field:
        """The directions over tensors with these names and numbers of elements."""


_KINDS: Mapping[Kind, Callable[[int, int], Directions]] = {
    "hadamard": Hadamard,
    "rademacher": Rademacher,
    "gaussian": Gaussian,
}


def directions(kind: Kind, seed: int, count: int) -> Directions:
    """The `count` directions of a kind. `hadamard` needs a power of two from 128 to 65,536."""
    return _KINDS[kind](seed, count)


def probe_digest(kind: Kind, count: int, device: torch.device) -> str:
    """ "sha256:" of a small sum over all directions, computed on this device.

    The coefficients are integers in [-8, 8] and every sum stays below 2**24, so it is exact in float32. Two
    implementations of the same directions agree in every bit for any order of summation, and others do not.
    Hadamard's probe has two full blocks and a truncated one.
    """
    elements = 2 * count + count // 2 + 3 if kind == "hadamard" else _EXPLICIT_PROBE_ELEMENTS
    field = directions(kind, _PROBE_SEED, count).over({_PROBE: elements}, device)
    coefficients = words(stream_key(_PROBE_SEED, "coefficients"), 0, count) % (2 * _PROBE_BOUND + 1) - _PROBE_BOUND
    # Adding zero turns -0.0 into 0.0, since the sign of a zero depends on the order of summation.
    total = field.combination(_PROBE, coefficients.to(device, torch.float32)) + 0.0
    return "sha256:" + hashlib.sha256(total.cpu().numpy().tobytes()).hexdigest()
