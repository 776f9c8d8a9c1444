"""Walsh-Hadamard transform in natural order, as two matrix products for each block."""

from functools import cache

import torch
from torch import Tensor


def transform(blocks: Tensor) -> Tensor:
    """`blocks @ H` for each row: (n, K) floating -> (n, K), K a power of two. Two products of about sqrt(K) each."""
    return transform_into(blocks.contiguous(), torch.empty_like(blocks), torch.empty_like(blocks))


def transform_into(blocks: Tensor, between: Tensor, out: Tensor) -> Tensor:
    """`transform` into `out`, which may be `blocks`. `between` is a buffer of the same shape."""
    count, size = blocks.shape
    rows = 1 << (size.bit_length() // 2)
    columns = size // rows
    right = sylvester(columns, blocks.dtype, blocks.device)
    left = sylvester(rows, blocks.dtype, blocks.device).expand(count, rows, rows)
    torch.mm(blocks.view(-1, columns), right, out=between.view(-1, columns))
    torch.bmm(left, between.view(count, rows, columns), out=out.view(count, rows, columns))
    return out


@cache
def sylvester(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The Sylvester-Hadamard matrix, entry (i, j) = (-1)^(bits that i and j have in common): (size, size)."""
    # A tensor from inference mode could not be used with gradients later, and this one is cached.
    with torch.inference_mode(False):
        index = torch.arange(size, device=device)
        return (1 - 2 * parity(index[:, None] & index[None, :])).to(dtype)


def parity(value: Tensor) -> Tensor:
    """Parity of the number of set bits, for integers below 2**16."""
    for shift in (8, 4, 2, 1):
        value = value ^ (value >> shift)
    return value & 1
