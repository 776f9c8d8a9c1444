"""Training by scalars: kinds of directions, what is perturbed, Pro, and first-order training beside them.

All rows make equally many forward passes: two a step, and one a step with a gradient (whose backward pass comes on
top).
"""

from collections.abc import Mapping
from typing import Any

from benchmarks.tables.definition import Row, Table

STEPS, BATCH, ROUNDS = 5, 8, 20
LEARNING_RATE = 1.5e-2
LORA: Mapping[str, Any] = {"kind": "lora", "r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]}
FACTORS, ALL = "LoRA and head", "all weights"


def _by_scalars(name: str, trainable: Mapping[str, Any], trained: str, **config: Any) -> Row:
    whole = {"local_steps": STEPS, "batch_size": BATCH, "learning_rate": LEARNING_RATE, **config}
    return Row(name, "fedkseed", whole, trainable, cells=_cells(trained))


def _cells(trained: str) -> dict[str, str]:
    return {"trained": trained, "forward passes": f"{2 * STEPS} x {BATCH}"}


ROWS = (
    _by_scalars("hadamard", LORA, FACTORS, directions="hadamard"),
    _by_scalars("rademacher", LORA, FACTORS, directions="rademacher"),
    _by_scalars("gaussian", LORA, FACTORS, directions="gaussian"),
    _by_scalars("hadamard, Pro", LORA, FACTORS, directions="hadamard", variant="pro", candidates=1024),
    # Null: the step size that the algorithm takes for so many elements.
    _by_scalars("hadamard, all", {"kind": "full"}, ALL, directions="hadamard", learning_rate=None),
    Row(
        "FedAvg (gradients)",
        "fedavg",
        {"local_steps": 2 * STEPS, "batch_size": BATCH, "learning_rate": 1e-3},
        LORA,
        cells=_cells(FACTORS),
    ),
)

TABLE = Table(name="fedkseed", rows=ROWS, rounds=ROUNDS)
