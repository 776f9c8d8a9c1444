"""K structured directions: columns of a Hadamard matrix under random signs, block by block of each tensor.

A tensor, flattened, is cut into blocks of K elements, the last one truncated. In block b, direction j is
`D_b * H[:, pi_b(j)]` with the K x K Sylvester-Hadamard matrix H, random signs D_b and the random permutation
`pi_b(j) = (odd_b j + offset_b) mod K`. Each direction alone is a vector of random signs; all K are orthogonal inside
a full block; and a sum over all K directions is one fast transform: O(d log K), where explicit directions are O(d K).

Signs and permutations come from Philox keyed by (seed, tensor name) at counter (block, word): the same bits on every
device, in any chunking, whatever other tensors there are. Element i of a block is `bit i % 32 of word i // 32`.
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
# So that a chunk's buffers stay in the cache, and an operation on one is long beside its call.
_CHUNK_ELEMENTS = 1 << 19
_MOVED_ELEMENTS = 1 << 20
_CHUNK_COUNTERS = 1 << 14
_WORD_ROWS = 512


@dataclass(frozen=True, slots=True)
class Hadamard:
    """`count` directions (a power of two from 128 to 65,536) that belong to `seed`."""

    seed: int
    count: int

    def over(self, sizes: Mapping[str, int], device: torch.device) -> "HadamardField":
        """The directions over tensors of these names and numbers of elements; needs one bit for each element."""
        return HadamardField(self, sizes, device)


class HadamardField:
    """The directions over some tensors on one device.

    `signs`: (blocks, K / 32) int32, a set bit is a minus; `odd`, `offset`: (blocks, 1) int32, of the permutations.
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
        repeated = torch.tensor(keys).reshape(-1, 2).repeat_interleave(counts, dim=0)
        self._draw(repeated.to(device), index.to(device))

    def _draw(self, keys: Tensor, index: Tensor) -> None:
        """Sign words, odd factors and offsets of blocks `index` under `keys`: (blocks, 2)."""
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
        """Blocks of one tensor."""
        return -(-self.sizes[name] // self.count)

    def rows_of(self, name: str) -> slice:
        """Where one tensor's blocks stand in `signs`, `odd` and `offset`."""
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
        """`values -= combination` for every given tensor of the field: flat, in the dtype of the coefficients."""
        coefficients = coefficients.to(self.device)
        if self.on_gpu and coefficients.dtype is torch.float32 and MIN_COUNT <= self.count <= MAX_COUNT:
            for name, value in values.items():
                rows = self.rows_of(name)
                inverse = _inverse(self.odd[rows], self.count)
                hadamard_gpu.subtract(value, coefficients, self.signs[rows], inverse, self.offset[rows])
            return
        self.run(
            [
                partial(self._take_away, rows, coefficients, part)
                for name, value in values.items()
                for rows, part in self.chunks(name, value)
            ]
        )

    def chunks(self, name: str, value: Tensor, elements: int = _CHUNK_ELEMENTS) -> Iterator[tuple[slice, Tensor]]:
        """One flat tensor in parts of whole blocks, and where their blocks stand."""
        step = max(1, elements // self.count)
        rows = self.rows_of(name)
        for first in range(rows.start, rows.stop, step):
            begin = (first - rows.start) * self.count
            yield slice(first, min(first + step, rows.stop)), value[begin : begin + step * self.count]

    def run(self, pieces: list[Callable[[], None]]) -> None:
        """Call pieces that do not touch each other's memory; on a CPU side by side."""
        if self.device.type == "cpu":
            on_all_cores(pieces)
        else:
            in_turn(pieces)

    def _take_away(self, rows: slice, coefficients: Tensor, part: Tensor) -> None:
        made = _Buffers.here(coefficients.dtype, self.device, rows.stop - rows.start, self.count)
        inverse = _inverse(self.odd[rows], self.count)
        # Column p of block b belongs to direction (p - offset) / odd; the products wrap, and keep their low bits.
        torch.mul(_positions(self.count, self.device), inverse, out=made.whole)
        made.whole.sub_(self.offset[rows] * inverse).bitwise_and_(self.count - 1)
        torch.index_select(coefficients, 0, made.whole.view(-1), out=made.spread.view(-1))
        summed = transform_into(made.spread, made.between, made.spread)
        summed.mul_(_signed(self.signs[rows], ONE_BITS, made.whole))
        part.sub_(summed.view(-1)[: part.numel()])


@dataclass(frozen=True, slots=True)
class HadamardDirection:
    """One direction. `words`: (blocks, K / 32) int32, a set bit is a minus."""

    field: HadamardField
    words: Tensor

    def values(self, name: str) -> Tensor:
        """The direction over one tensor: (elements,) float32, each 1 or -1."""
        return signed(self.words[self.field.rows_of(name)], ONE_BITS).reshape(-1)[: self.field.sizes[name]]

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
        """`clean += step * last`, then `out = clean + scale * direction`, part by part while it is in the cache."""
        if self.field.on_gpu:
            last.move(step, clean, clean)
            self.move(scale, clean, out)
            return
        pieces: list[Callable[[], None]] = []
        for rows, kept, moved in self._parts(clean, out):
            pieces += [partial(last._move, rows, _bits(step), kept, kept)]
            pieces += [partial(self._move, rows, _bits(scale), kept, moved)]
        in_turn(pieces)

    def _parts(
        self, begin: Mapping[str, Tensor], out: Mapping[str, Tensor]
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Both sides of a move in the same parts, and where their blocks stand."""
        for name in self.field.sizes:
            before = self.field.chunks(name, begin[name], _MOVED_ELEMENTS)
            after = self.field.chunks(name, out[name], _MOVED_ELEMENTS)
            for (rows, part), (_, moved) in zip(before, after, strict=True):
                yield rows, part, moved

    def _move(self, rows: slice, bits: int, begin: Tensor, out: Tensor) -> None:
        made = _Buffers.here(torch.float32, self.field.device, rows.stop - rows.start, self.field.count)
        moved = _signed(self.words[rows], bits, made.whole).view(-1)
        torch.add(begin, moved[: out.numel()], out=out)


def _bits(value: float) -> int:
    """The float32 of this value, as the integer of its bits."""
    return int(torch.tensor(value, dtype=torch.float32).view(torch.int32))


@dataclass(frozen=True, slots=True)
class _Buffers:
    """What the pieces of work in one thread are worked out in: new memory for each would cost as much as the work.

    `whole`: (blocks, K) int32; `spread`, `between`: (blocks, K) floating.
    """

    whole: Tensor
    spread: Tensor
    between: Tensor

    @classmethod
    def here(cls, dtype: torch.dtype, device: torch.device, blocks: int, count: int) -> "_Buffers":
        """This thread's, cut to so many blocks; overwritten by its next piece."""
        kept: dict[str, Any] = _THREAD.__dict__
        key = f"{dtype} {device} {count}"
        if key not in kept:
            shape = max(1, _MOVED_ELEMENTS // count), count
            floats = [torch.empty(shape, dtype=dtype, device=device) for _ in range(2)]
            kept[key] = cls(torch.empty(shape, dtype=torch.int32, device=device), *floats)
        found: _Buffers = kept[key]
        return cls(found.whole[:blocks], found.spread[:blocks], found.between[:blocks])


_THREAD = threading.local()


def _slices(count: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


def _block_words(index: Tensor, lane: Tensor, purpose: int, keys: Tensor) -> tuple[Tensor, ...]:
    zeros = torch.zeros_like(index + lane)
    return philox((index + zeros, lane + zeros, zeros + purpose, zeros), (keys[:, :1], keys[:, 1:]))


def _inverse(odd: Tensor, modulus: int) -> Tensor:
    """The inverse of odd numbers modulo a power of two, by Newton's iteration in wrapping int32."""
    found = odd.clone()
    for _ in range(math.ceil(math.log2(modulus.bit_length()))):
        found = found * (2 - odd * found)
    return found & (modulus - 1)


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


def signed(words: Tensor, bits: int) -> Tensor:
    """Words to floats: the float32 of these bits, with its sign turned where a bit is set: (n, 32 * words)."""
    return _signed(
        words, bits, torch.empty(len(words), words.shape[1] * WORD_BITS, dtype=torch.int32, device=words.device)
    )


def _signed(words: Tensor, bits: int, out: Tensor) -> Tensor:
    torch.bitwise_left_shift(words[:, :, None], _shifts(words.device), out=out.view(len(words), -1, WORD_BITS))
    return out.bitwise_and_(_SIGN_BIT).bitwise_xor_(bits).view(torch.float32)
