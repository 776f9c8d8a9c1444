"""Explicit directions: K directions of independent elements, with O(d K) work for a sum over all.

The words of Philox block (i, j) under the key of (seed, tensor name) determine element i of direction j. Signs are
single bits. A Gaussian element is the centered sum of eight bytes times a float32 factor. It has variance 1 and the
same bits on every device. It approximates the normal distribution: no element is beyond 4.9.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from federated.maths.generator import philox, stream_key
from federated.maths.hadamard import ONE_BITS, WORD_BITS, apply_signs

_LANES = 4
_WORDS_PER_NORMAL = 2
# Eight uniform bytes: mean 8 * 127.5, variance 8 * (256**2 - 1) / 12.
_BYTES_MEAN = 1020
_BYTES_VARIANCE = 43690
_CHUNK_COUNTERS = 1 << 14


@dataclass(frozen=True, slots=True)
class Rademacher:
    """`count` directions of random signs."""

    seed: int
    count: int

    def over(self, sizes: Mapping[str, int], device: torch.device) -> "ExplicitField":
        """The directions over tensors with these names and numbers of elements. Stores none of them."""
        return ExplicitField(self.seed, self.count, sizes, device, _Elements(_LANES * WORD_BITS, 1.0, _signs))


@dataclass(frozen=True, slots=True)
class Gaussian:
    """`count` directions of approximately normal elements."""

    seed: int
    count: int

    def over(self, sizes: Mapping[str, int], device: torch.device) -> "ExplicitField":
        """The directions over tensors with these names and numbers of elements. Stores none of them."""
        factor = 1 / math.sqrt(_BYTES_VARIANCE)
        return ExplicitField(
            self.seed, self.count, sizes, device, _Elements(_LANES // _WORDS_PER_NORMAL, factor, _normals)
        )


@dataclass(frozen=True, slots=True)
class _Elements:
    """Conversion of words to elements: `per_block` integers of a Philox block, and the factor of one."""

    per_block: int
    factor: float
    of_words: Callable[[Tensor], Tensor]


class ExplicitField:
    """The directions over some tensors on one device."""

    def __init__(
        self, seed: int, count: int, sizes: Mapping[str, int], device: torch.device, elements: _Elements
    ) -> None:
        self.count = count
        self.sizes = dict(sizes)
        self.device = device
        self._elements = elements
        self._keys = {name: stream_key(seed, f"directions/{name}") for name in sizes}

    def direction(self, index: int) -> "ExplicitDirection":
        """One of the directions. Raises IndexError."""
        if not 0 <= index < self.count:
            raise IndexError(f"there are {self.count} directions, not one of index {index}")
        indices = torch.tensor([index], device=self.device)
        factor = torch.tensor(self._elements.factor, dtype=torch.float32)
        tensors = {
            name: torch.cat([part for _, part in self._parts(name, indices)], dim=1)[0] * factor
            for name in self.sizes
        }
        return ExplicitDirection(tensors)

    def combination(self, name: str, coefficients: Tensor) -> Tensor:
        """`sum_j coefficients[j] z_j` over one tensor: (K,) -> (elements,), in the dtype of the coefficients.

        Directions with coefficient 0 are not computed. The factor of Gaussian elements is applied last, so that sums
        with integer coefficients are exact.
        """
        coefficients = coefficients.to(self.device)
        indices = coefficients.nonzero().squeeze(1)
        weights = coefficients[indices]
        out = torch.zeros(self.sizes[name], dtype=coefficients.dtype, device=self.device)
        if len(indices) == 0:
            return out
        for first, part in self._parts(name, indices):
            out[first : first + part.shape[1]] = weights @ part.to(weights.dtype)
        return out.mul_(torch.tensor(self._elements.factor, dtype=torch.float32).to(out.dtype))

    def subtract(self, coefficients: Tensor, values: Mapping[str, Tensor]) -> None:
        """`values -= combination` for every tensor of the field: flat, in the dtype of the coefficients."""
        for name, value in values.items():
            value.sub_(self.combination(name, coefficients))

    def _parts(self, name: str, indices: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Index of the first element, and float32 integers (directions, elements) from there on."""
        elements, per_block = self.sizes[name], self._elements.per_block
        step = max(1, _CHUNK_COUNTERS // len(indices))
        for first in range(0, -(-elements // per_block), step):
            block = torch.arange(
                first, min(first + step, -(-elements // per_block)), dtype=torch.int64, device=self.device
            )
            zeros = torch.zeros(len(indices), len(block), dtype=torch.int64, device=self.device)
            counter = (block + zeros, zeros, indices[:, None] + zeros, zeros)
            lanes = philox(counter, self._keys[name])
            words = torch.stack(lanes, dim=-1).reshape(len(indices), -1)
            values = self._elements.of_words(words)
            yield first * per_block, values[:, : elements - first * per_block]


@dataclass(frozen=True, slots=True)
class ExplicitDirection:
    """One direction: flat float32 tensors by name."""

    tensors: Mapping[str, Tensor]

    def values(self, name: str) -> Tensor:
        """The direction over one tensor: (elements,) float32."""
        return self.tensors[name]

    def move(self, scale: float, begin: Mapping[str, Tensor], out: Mapping[str, Tensor]) -> None:
        """`out = begin + scale * direction` for every tensor: flat float32, `out` may be `begin`."""
        for name, values in self.tensors.items():
            torch.add(begin[name], values, alpha=scale, out=out[name])

    def follow(
        self,
        last: "ExplicitDirection",
        step: float,
        scale: float,
        clean: Mapping[str, Tensor],
        out: Mapping[str, Tensor],
    ) -> None:
        """`clean += step * last`, then `out = clean + scale * direction`."""
        last.move(step, clean, clean)
        self.move(scale, clean, out)


def _signs(words: Tensor) -> Tensor:
    return apply_signs(words.to(torch.int32), ONE_BITS)


def _normals(words: Tensor) -> Tensor:
    even, odd = words.reshape(len(words), -1, _WORDS_PER_NORMAL).unbind(dim=2)
    # Bytes are added in two lanes of 16 bits, then the lanes: 8 * 255 fits.
    lanes = (even & 0x00FF00FF) + ((even >> 8) & 0x00FF00FF) + (odd & 0x00FF00FF) + ((odd >> 8) & 0x00FF00FF)
    return ((lanes & 0xFFFF) + (lanes >> 16) - _BYTES_MEAN).to(torch.float32)
