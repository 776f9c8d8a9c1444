"""Triton kernels of the structured directions. Only `hadamard_gpu` imports them, and only if Triton is installed."""

# No annotations, because Triton interprets them as its own types.
# ruff: noqa: ANN001, ANN201, ANN202, N803
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import triton
import triton.language as tl


@triton.jit
def move(begin, out, words, elements, scale, SIZE: tl.constexpr):
    """out = begin + scale, or - scale where the element's bit is set."""
    position = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = position < elements
    word = tl.load(words + position // 32, mask=inside, other=0)
    minus = (word >> (position % 32).to(tl.int32)) & 1
    value = tl.load(begin + position, mask=inside, other=0.0)
    tl.store(out + position, value + tl.where(minus == 1, -scale, scale), mask=inside)


@triton.jit
def subtract(
    values,
    coefficients,
    signs,
    inverse,
    offset,
    elements,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """values -= signs * (H_ROWS @ spread coefficients @ H_COLUMNS), one block of ROWS * COLUMNS a program."""
    block = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    # The products overflow, with correct low bits.
    owner = ((place - tl.load(offset + block)) * tl.load(inverse + block)) & (ROWS * COLUMNS - 1)
    spread = tl.load(coefficients + owner)
    between = tl.dot(spread, _sylvester(COLUMNS), input_precision="ieee")
    sums = tl.dot(_sylvester(ROWS), between, input_precision="ieee")
    minus = (tl.load(signs + block * (ROWS * COLUMNS // 32) + place // 32) >> (place % 32)) & 1
    position = block * (ROWS * COLUMNS) + place
    inside = position < elements
    value = tl.load(values + position, mask=inside, other=0.0)
    tl.store(values + position, value - tl.where(minus == 1, -sums, sums), mask=inside)


@triton.jit
def _sylvester(SIZE: tl.constexpr):
    shared = tl.arange(0, SIZE)[:, None] & tl.arange(0, SIZE)[None, :]
    shared = shared ^ (shared >> 4)
    shared = shared ^ (shared >> 2)
    shared = shared ^ (shared >> 1)
    return tl.where((shared & 1) == 1, -1.0, 1.0)
