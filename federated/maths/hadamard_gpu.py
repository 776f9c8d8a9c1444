"""Structured directions on a GPU with Triton: one pass over the weights for a move, one for a rebuild.

The kernels read the signs and permutations of `hadamard`, so the bits are the same. They transform a block of K
elements in registers as two products of about sqrt(K) x sqrt(K), in full float32.
"""

import importlib.util
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

# Products on tensor cores need at least 16 rows. More than 64 x 64 float32 values do not fit into registers.
MIN_COUNT, MAX_COUNT = 512, 4096
_MOVE_ELEMENTS = 1024
_WARPS = 4


@cache
def usable() -> bool:
    """Whether a GPU and Triton are available."""
    return torch.cuda.is_available() and importlib.util.find_spec("triton") is not None


@cache
def _kernels() -> ModuleType:
    # Triton is not installed everywhere, and its kernels must be in a module that imports it.
    return importlib.import_module("federated.maths.hadamard_kernels")


def move(begin: Tensor, out: Tensor, words: Tensor, scale: float) -> None:
    """`out = begin + scale * direction`: flat float32 on one GPU; words: (blocks, K / 32) of the direction."""
    grid = (-(-out.numel() // _MOVE_ELEMENTS),)
    with torch.cuda.device(out.device):
        _kernels().move[grid](begin, out, words, out.numel(), scale, SIZE=_MOVE_ELEMENTS)


def subtract(values: Tensor, coefficients: Tensor, signs: Tensor, inverse: Tensor, offset: Tensor) -> None:
    """`values -= sum_j coefficients[j] z_j`: flat float32; signs: (blocks, K / 32), inverse, offset: (blocks, 1)."""
    count = len(coefficients)
    rows = 1 << (count.bit_length() // 2)
    with torch.cuda.device(values.device):
        _kernels().subtract[(len(signs),)](
            values, coefficients, signs, inverse, offset, values.numel(),
            ROWS=rows, COLUMNS=count // rows, num_warps=_WARPS,
        )  # fmt: skip
