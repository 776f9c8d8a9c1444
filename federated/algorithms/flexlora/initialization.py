"""Where factors start: rows of A random and orthonormal, B zero, the same for everybody.

A client of a lower rank has the first rows of the others, so means over clients are means of the same directions.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from federated.algorithms.flexlora.lora_matrices import Matrix
from federated.maths.generator import Key, stream_key
from federated.maths.low_rank import complete
from federated.payloads.payload import LazyTensor


def padding_key(seed: int, matrix: Matrix, round_number: int | None = None) -> Key:
    """The stream that random rows of a matrix come from: of the federation, or anew in each round."""
    place = "padding" if round_number is None else f"round {round_number}"
    return stream_key(seed, f"{matrix.module}/{place}")


def untrained(matrix: Matrix, rank: int, key: Key) -> tuple[Tensor, Tensor]:
    """Factors of the product zero, as (B: (out, rank), A: (rank, in)), float32."""
    return torch.zeros(matrix.outputs, rank), complete(torch.zeros(0, matrix.inputs), rank, key)


def lazy_factors(
    matrix: Matrix, rank: int, make: Callable[[], tuple[Tensor, Tensor]]
) -> dict[str, Tensor | LazyTensor]:
    """The two tensors of a pair (B, A) that `make` makes when one of them is asked for."""
    return {
        matrix.a: LazyTensor(torch.float32, (rank, matrix.inputs), lambda: make()[1]),
        matrix.b: LazyTensor(torch.float32, (matrix.outputs, rank), lambda: make()[0]),
    }
