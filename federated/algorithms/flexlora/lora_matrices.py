"""Adapted matrices of a model: names of their two factors, sizes, and the scale of each rank.

The factors of a linear map are A, `MODULE.lora_A.weight` (rank, in), and B, `MODULE.lora_B.weight` (out, rank). Those
of an embedding are `MODULE.lora_embedding_A` and `MODULE.lora_embedding_B`, of the same shapes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from federated.contract import FederationRefused
from federated.trainable import Lora, ModelFacts

# Suffix of a factor's name in an instruction: its ranks learned before, which are frozen (rule stack).
LEARNED = "/learned"
_MARKS = ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B"))


@dataclass(frozen=True, slots=True)
class Matrix:
    """One adapted matrix. `rank` is the trainable's, the highest that a client trains."""

    module: str
    a: str
    b: str
    inputs: int
    outputs: int
    rank: int

    def scale(self, rank: int, trainable: Lora, scaling: Literal["rslora", "lora"]) -> float:
        """The factor on the product of LoRA matrices of this rank."""
        return trainable.alpha_of(self.module) / (math.sqrt(rank) if scaling == "rslora" else rank)

    def as_facts(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}


def matrices_of(model: ModelFacts) -> list[Matrix]:
    """Every adapted matrix of a model. Raises FederationRefused for a rank above the matrix's, naming the module."""
    shapes = {tensor.name: tensor.shape for tensor in model.tensors}
    matrices = []
    for name, shape in shapes.items():
        for mark_a, mark_b in _MARKS:
            if name.endswith(mark_a):
                module = name.removesuffix(mark_a)
                matrices.append(_matrix(module, name, module + mark_b, shape, shapes.get(module + mark_b)))
    if not matrices:
        raise FederationRefused("this model has no LoRA factors to train")
    return matrices


def stored_matrices(facts: Mapping[str, Any]) -> list[Matrix]:
    """The matrices in a state's facts."""
    return [Matrix(**values) for values in facts["matrices"]]


def _matrix(module: str, a: str, b: str, shape_a: tuple[int, ...], shape_b: tuple[int, ...] | None) -> Matrix:
    if shape_b is None or len(shape_a) != 2 or len(shape_b) != 2:
        raise FederationRefused(f"{module}: only linear maps and embeddings can change their rank")
    (rank, inputs), outputs = shape_a, shape_b[0]
    if rank > min(inputs, outputs):
        raise FederationRefused(
            f"{module}: rank {rank} is above {min(inputs, outputs)}, all that {outputs} x {inputs} has"
        )
    return Matrix(module, a, b, inputs, outputs, rank)
