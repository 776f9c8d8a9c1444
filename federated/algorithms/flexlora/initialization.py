"""Initialization of factors: rows of A random and orthonormal, B zero, the same for all clients.

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
    """Key of the random rows of a matrix: one for the federation, or one for each round."""
    purpose = "padding" if round_number is None else f"round {round_number}"
    return stream_key(seed, f"{matrix.module}/{purpose}")


def initial_factors(matrix: Matrix, rank: int, key: Key) -> tuple[Tensor, Tensor]:
    """Factors with a product of zero, as (B: (out, rank), A: (rank, in)), float32."""
    return torch.zeros(matrix.outputs, rank), complete(torch.zeros(0, matrix.inputs), rank, key)


def lazy_factors(
    matrix: Matrix, rank: int, make: Callable[[], tuple[Tensor, Tensor]]
) -> dict[str, Tensor | LazyTensor]:
    """The two tensors of a pair (B, A). `make` computes the pair when one of them is read."""
    return {
        matrix.a: LazyTensor(torch.float32, (rank, matrix.inputs), lambda: make()[1]),
        matrix.b: LazyTensor(torch.float32, (matrix.outputs, rank), lambda: make()[0]),
    }
