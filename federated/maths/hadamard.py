"""Structured directions: K columns of a Hadamard matrix with random signs, for each block of a tensor.

A flattened tensor is cut into blocks of K elements, the last one truncated. In block b, direction j is
`D_b * H[:, pi_b(j)]` with the K x K Sylvester-Hadamard matrix H, random signs D_b and the random permutation
`pi_b(j) = (odd_b j + offset_b) mod K`. Each direction by itself is a vector of random signs. All K are orthogonal
within a full block. A sum over all K directions is one fast transform: O(d log K) instead of O(d K) for explicit
ones.

Signs and permutations come from Philox keyed by (seed, tensor name) at counter (block, word). Their bits are the
same on every device, in any chunking, with any other tensors. Element i of a block is `bit i % 32 of word i // 32`.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from federated.maths import hadamard_gpu
from federated.maths.generator import philox, stream_key
from federated.maths.hadamard_gpu import MAX_COUNT, MIN_COUNT
from federated.maths.walsh import parity, transform_into
from federated.payloads.parallel import in_turn, on_all_cores

WORD_BITS = 32
_SIGN_BIT = -(2**31)
ONE_BITS = 0x3F800000
# A chunk's buffers fit into the cache, and an operation on one takes long compared with its call.
_CHUNK_ELEMENTS = 1 << 19
_MOVED_ELEMENTS = 1 << 20
_CHUNK_COUNTERS = 1 << 14
_WORD_ROWS = 512


@dataclass(frozen=True, slots=True)
class Hadamard:
    """`count` directions (a power of two from 128 to 65,536) of one seed."""

    seed: int
    count: int

    def over(self, sizes: Mapping[str, int], device: torch.device) -> "HadamardField":
        """The directions over tensors with these names and numbers of elements. Needs one bit for each element."""
        return HadamardField(self, sizes, device)


class HadamardField:
    """The directions over some tensors on one device.

    `signs`: (blocks, K / 32) int32, a set bit is a minus. `odd`, `offset`: (blocks, 1) int32, of the permutations.
    """

    def __init__(self, directions: Hadamard, sizes: Mapping[str, int], device: torch.device) -> None:
        self.count = directions.count
        self.sizes = dict(sizes)
        self.device = device
        self.on_gpu = device.type == "cuda" and hadamard_gpu.usable()
        self._first: dict[str, int] = {}
        blocks = 0
        for name in sizes:
            self._first[name] = blocks
            blocks += self.blocks_of(name)
        keys = [stream_key(directions.seed, f"directions/{name}") for name in sizes]
        counts = torch.tensor([self.blocks_of(name) for name in sizes])
        index = torch.cat([torch.arange(int(count)) for count in counts]) if blocks else torch.zeros(0).long()
        block_keys = torch.tensor(keys).reshape(-1, 2).repeat_interleave(counts, dim=0)
        self._draw(block_keys.to(device), index.to(device))

    def _draw(self, keys: Tensor, index: Tensor) -> None:
        """Compute sign words, odd factors and offsets of blocks `index` with `keys`: (blocks, 2)."""
        self.signs = torch.empty(len(index), self.count // WORD_BITS, dtype=torch.int32, device=self.device)
        lane = torch.arange(self.count // (4 * WORD_BITS), device=self.device)

        def put_signs(rows: slice) -> None:
            words = _block_words(index[rows, None], lane, 0, keys[rows])
            self.signs[rows] = torch.stack(words, dim=-1).reshape(-1, self.count // WORD_BITS).to(torch.int32)

        step = max(1, _CHUNK_COUNTERS // len(lane))
        self.run([partial(put_signs, rows) for rows in _slices(len(index), step)])
        odd, offset, _, _ = _block_words(index[:, None], torch.zeros_like(lane[:1]), 1, keys)
        mask = self.count - 1
        self.odd, self.offset = ((odd & mask) | 1).to(torch.int32), (offset & mask).to(torch.int32)

    def blocks_of(self, name: str) -> int:
        """Number of blocks of one tensor."""
        return -(-self.sizes[name] // self.count)

    def rows_of(self, name: str) -> slice:
        """Rows of one tensor's blocks in `signs`, `odd` and `offset`."""
        return slice(self._first[name], self._first[name] + self.blocks_of(name))

    def direction(self, index: int) -> "HadamardDirection":
        """One of the directions. Raises IndexError."""
        if not 0 <= index < self.count:
            raise IndexError(f"there are {self.count} directions, not one of index {index}")
        words = torch.empty_like(self.signs)
        in_turn([partial(self._put_words, index, rows, words[rows]) for rows in _slices(len(words), _WORD_ROWS)])
        return HadamardDirection(self, words)

    def _put_words(self, index: int, rows: slice, out: Tensor) -> None:
        column = (self.odd[rows] * index + self.offset[rows]) & (self.count - 1)
        word = torch.arange(self.count // WORD_BITS, dtype=torch.int32, device=self.device)
        upper = -parity(word & (column // WORD_BITS))
        lower = _word_patterns(self.device)[(column % WORD_BITS).long().squeeze(1)][:, None]
        torch.bitwise_xor(self.signs[rows] ^ upper, lower, out=out)

    def combination(self, name: str, coefficients: Tensor) -> Tensor:
        """`sum_j coefficients[j] z_j` over one tensor: (K,) -> (elements,), in the dtype of the coefficients."""
        out = torch.zeros(self.sizes[name], dtype=coefficients.dtype, device=self.device)
        self.subtract(-coefficients, {name: out})
        return out

    def subtract(self, coefficients: Tensor, values: Mapping[str, Tensor]) -> None:
        """`values -= combination` for every tensor in `values`: flat, in the dtype of the coefficients."""
        coefficients = coefficients.to(self.device)
        if self.on_gpu and coefficients.dtype is torch.float32 and MIN_COUNT <= self.count <= MAX_COUNT:
            for name, value in values.items():
                rows = self.rows_of(name)
                inverse = _inverse(self.odd[rows], self.count)
                hadamard_gpu.subtract(value, coefficients, self.signs[rows], inverse, self.offset[rows])
            return
        self.run(
            [
                partial(self._subtract_blocks, rows, coefficients, part)
                for name, value in values.items()
                for rows, part in self.chunks(name, value)
            ]
        )

    def chunks(self, name: str, value: Tensor, elements: int = _CHUNK_ELEMENTS) -> Iterator[tuple[slice, Tensor]]:
        """One flat tensor in parts of whole blocks, with the rows of their blocks."""
        step = max(1, elements // self.count)
        rows = self.rows_of(name)
        for first in range(rows.start, rows.stop, step):
            begin = (first - rows.start) * self.count
            yield slice(first, min(first + step, rows.stop)), value[begin : begin + step * self.count]

    def run(self, pieces: list[Callable[[], None]]) -> None:
        """Call pieces that do not share memory, in parallel on a CPU."""
        if self.device.type == "cpu":
            on_all_cores(pieces)
        else:
            in_turn(pieces)

    def _subtract_blocks(self, rows: slice, coefficients: Tensor, part: Tensor) -> None:
        buffers = _Buffers.of_thread(coefficients.dtype, self.device, rows.stop - rows.start, self.count)
        inverse = _inverse(self.odd[rows], self.count)
        # Column p of block b belongs to direction (p - offset) / odd. The products overflow, with correct low bits.
        torch.mul(_positions(self.count, self.device), inverse, out=buffers.integers)
        buffers.integers.sub_(self.offset[rows] * inverse).bitwise_and_(self.count - 1)
        torch.index_select(coefficients, 0, buffers.integers.view(-1), out=buffers.spread.view(-1))
        sums = transform_into(buffers.spread, buffers.between, buffers.spread)
        sums.mul_(_apply_signs(self.signs[rows], ONE_BITS, buffers.integers))
        part.sub_(sums.view(-1)[: part.numel()])


@dataclass(frozen=True, slots=True)
class HadamardDirection:
    """One direction. `words`: (blocks, K / 32) int32, a set bit is a minus."""

    field: HadamardField
    words: Tensor

    def values(self, name: str) -> Tensor:
        """The direction over one tensor: (elements,) float32, each 1 or -1."""
        return apply_signs(self.words[self.field.rows_of(name)], ONE_BITS).reshape(-1)[: self.field.sizes[name]]

    def move(self, scale: float, begin: Mapping[str, Tensor], out: Mapping[str, Tensor]) -> None:
        """`out = begin + scale * direction` for every tensor: flat float32, `out` may be `begin`."""
        if self.field.on_gpu:
            for name in self.field.sizes:
                hadamard_gpu.move(begin[name], out[name], self.words[self.field.rows_of(name)], scale)
            return
        bits = _bits(scale)
        in_turn([partial(self._move, rows, bits, before, after) for rows, before, after in self._parts(begin, out)])

    def follow(
        self,
        last: "HadamardDirection",
        step: float,
        scale: float,
        clean: Mapping[str, Tensor],
        out: Mapping[str, Tensor],
    ) -> None:
        """`clean += step * last`, then `out = clean + scale * direction`, part by part to stay in the cache."""
        if self.field.on_gpu:
            last.move(step, clean, clean)
            self.move(scale, clean, out)
            return
        pieces: list[Callable[[], None]] = []
        for rows, before, after in self._parts(clean, out):
            pieces += [partial(last._move, rows, _bits(step), before, before)]
            pieces += [partial(self._move, rows, _bits(scale), before, after)]
        in_turn(pieces)

    def _parts(
        self, begin: Mapping[str, Tensor], out: Mapping[str, Tensor]
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Input and output of a move in the same parts, with the rows of their blocks."""
        for name in self.field.sizes:
            inputs = self.field.chunks(name, begin[name], _MOVED_ELEMENTS)
            outputs = self.field.chunks(name, out[name], _MOVED_ELEMENTS)
            for (rows, before), (_, after) in zip(inputs, outputs, strict=True):
                yield rows, before, after

    def _move(self, rows: slice, bits: int, begin: Tensor, out: Tensor) -> None:
        buffers = _Buffers.of_thread(torch.float32, self.field.device, rows.stop - rows.start, self.field.count)
        step = _apply_signs(self.words[rows], bits, buffers.integers).view(-1)
        torch.add(begin, step[: out.numel()], out=out)


def _bits(value: float) -> int:
    """The bits of this value as float32, as an integer."""
    return int(torch.tensor(value, dtype=torch.float32).view(torch.int32))


@dataclass(frozen=True, slots=True)
class _Buffers:
    """Buffers of one thread, reused because allocating new memory for each piece would cost as much as its work.

    `integers`: (blocks, K) int32. `spread`, `between`: (blocks, K) floating.
    """

    integers: Tensor
    spread: Tensor
    between: Tensor

    @classmethod
    def of_thread(cls, dtype: torch.dtype, device: torch.device, blocks: int, count: int) -> "_Buffers":
        """The buffers of this thread for `blocks` blocks. The next piece overwrites them."""
        cache: dict[str, Any] = _THREAD.__dict__
        key = f"{dtype} {device} {count}"
        if key not in cache:
            shape = max(1, _MOVED_ELEMENTS // count), count
            floats = [torch.empty(shape, dtype=dtype, device=device) for _ in range(2)]
            cache[key] = cls(torch.empty(shape, dtype=torch.int32, device=device), *floats)
        buffers: _Buffers = cache[key]
        return cls(buffers.integers[:blocks], buffers.spread[:blocks], buffers.between[:blocks])


_THREAD = threading.local()


def _slices(count: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


def _block_words(index: Tensor, lane: Tensor, purpose: int, keys: Tensor) -> tuple[Tensor, ...]:
    zeros = torch.zeros_like(index + lane)
    return philox((index + zeros, lane + zeros, zeros + purpose, zeros), (keys[:, :1], keys[:, 1:]))


def _inverse(odd: Tensor, modulus: int) -> Tensor:
    """The inverse of odd numbers modulo a power of two, by Newton's iteration in wrapping int32."""
    inverse = odd.clone()
    for _ in range(math.ceil(math.log2(modulus.bit_length()))):
        inverse = inverse * (2 - odd * inverse)
    return inverse & (modulus - 1)


@cache
def _word_patterns(device: torch.device) -> Tensor:
    """For p in [0, 32): the word whose bit i is the parity of i & p."""
    with torch.inference_mode(False):
        index = torch.arange(WORD_BITS, device=device)
        bits = parity(index[:, None] & index[None, :])
        return (bits << index).sum(dim=1).to(torch.int32)


@cache
def _shifts(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(WORD_BITS - 1, -1, -1, dtype=torch.int32, device=device)


@cache
def _positions(count: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(count, dtype=torch.int32, device=device)


def apply_signs(words: Tensor, bits: int) -> Tensor:
    """The float32 with these bits, negated for each set bit of `words`: (n, words) -> (n, 32 * words)."""
    return _apply_signs(
        words, bits, torch.empty(len(words), words.shape[1] * WORD_BITS, dtype=torch.int32, device=words.device)
    )


def _apply_signs(words: Tensor, bits: int, out: Tensor) -> Tensor:
    torch.bitwise_left_shift(words[:, :, None], _shifts(words.device), out=out.view(len(words), -1, WORD_BITS))
    return out.bitwise_and_(_SIGN_BIT).bitwise_xor_(bits).view(torch.float32)
