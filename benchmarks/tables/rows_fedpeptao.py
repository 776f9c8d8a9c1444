"""Table of FedPepTAO: prompts with all layers averaged, and FedPepTAO with and without its control variates."""

from collections.abc import Mapping
from typing import Any

from benchmarks.tables.definition import Row
from benchmarks.tables.four_tasks import table_of

TRAINING = {"local_epochs": 2.0, "batch_size": 8, "learning_rate": 1e-2, "weight_decay": 0.1}
PREFIX = {"kind": "prefix", "num_virtual_tokens": 20}


def _fedpeptao(name: str, layers: str, config: Mapping[str, Any]) -> Row:
    return Row(name, "fedpeptao", {**TRAINING, **config}, PREFIX, cells={"layers that travel": layers})


ROWS = (
    Row("FedAvg prefix tuning", "fedavg", TRAINING, PREFIX, cells={"layers that travel": "all"}),
    _fedpeptao("FedPepTAO", "half", {}),
    _fedpeptao("FedPepTAO without control variates", "half", {"control_variates": False}),
)

TABLE = table_of("fedpeptao", ROWS)
