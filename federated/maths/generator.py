"""Philox 4x32-10 random number generator in torch's integer operations, a pure function of key and position.

Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. The bits are the same on every device, in any
chunking and in every version of torch. Torch's own generators guarantee none of these.
"""

import hashlib

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF

Key = tuple[int, int]
# A key for each counter, in shapes that broadcast with the counters.
Keys = tuple[Tensor, Tensor]


def stream_key(seed: int, name: str) -> Key:
    """The two 32-bit key words of the stream called `name`: the first 8 bytes of SHA-256("seed/name")."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def words(key: Key, first: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Words `first` to `first + count` of a stream: (count,) int64, each in [0, 2**32).

    Word i is lane i % 4 of block i // 4, so the words do not depend on how a range is split.
    """
    first_block, skip = divmod(first, 4)
    blocks = (skip + count + 3) // 4
    index = torch.arange(first_block, first_block + blocks, dtype=torch.int64, device=device)
    zeros = torch.zeros_like(index)
    lanes = philox((index & _MASK, index >> 32, zeros, zeros), key)
    return torch.stack(lanes, dim=1).reshape(-1)[skip : skip + count]


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Key | Keys) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One block for each counter. Counters and result are four int64 tensors of one shape that hold 32-bit words."""
    c0, c1, c2, c3 = counter
    k0: int | Tensor = key[0]
    k1: int | Tensor = key[1]
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(factor: int, value: Tensor) -> tuple[Tensor, Tensor]:
    # In two halves of 16 bits, because the 64-bit product would overflow int64.
    low_part = (value & 0xFFFF) * factor
    rest = (value >> 16) * factor + (low_part >> 16)
    return rest >> 16, ((rest & 0xFFFF) << 16) | (low_part & 0xFFFF)
