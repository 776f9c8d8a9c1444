"""Table of FedKSeed: kinds of directions, perturbed tensors, the variant Pro, and first-order training.

All rows make the same number of forward passes: two per step, and one per step with a gradient (plus its backward
pass). There are few clients with one mix of labels, and all take part, as so few steps along scalars would not learn
in a harder federation.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks.tables.definition import Row, Table

STEPS, BATCH, ROUNDS = 40, 4, 6
LEARNING_RATE = 1e-2
# Every rebuild draws the explicit directions again. At 4,096 that would cost ten times the training.
CANDIDATES = 512
LORA: Mapping[str, Any] = {"kind": "lora", "r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]}
FACTORS, ALL_WEIGHTS = "LoRA and head", "all weights"


def _by_scalars(name: str, trainable: Mapping[str, Any], tensors: str, **config: Any) -> Row:
    shared = {"local_steps": STEPS, "batch_size": BATCH, "schedule": "cosine", "learning_rate": LEARNING_RATE}
    whole = {**shared, "candidates": CANDIDATES, **config}
    return Row(name, "fedkseed", whole, trainable, cells=_cells(tensors, str(whole["candidates"])))


def _cells(tensors: str, candidates: str = "") -> dict[str, str]:
    return {"trained": tensors, "K": candidates}


ROWS = (
    _by_scalars("hadamard", LORA, FACTORS, directions="hadamard"),
    _by_scalars("rademacher", LORA, FACTORS, directions="rademacher"),
    _by_scalars("gaussian", LORA, FACTORS, directions="gaussian"),
    _by_scalars("hadamard, Pro", LORA, FACTORS, directions="hadamard", variant="pro"),
    # With null the algorithm chooses the step size for this number of elements.
    _by_scalars(
        "hadamard, all", {"kind": "full"}, ALL_WEIGHTS, directions="hadamard", learning_rate=None, candidates=4096
    ),
    Row(
        "FedAvg (gradients)",
        "fedavg",
        {"local_steps": 2 * STEPS, "batch_size": BATCH, "learning_rate": 1e-3},
        LORA,
        cells=_cells(FACTORS),
    ),
)

TABLE = Table(name="fedkseed", rows=ROWS, rounds=ROUNDS, clients=4, cohort=4, alpha=100.0, train_rows=1000)
