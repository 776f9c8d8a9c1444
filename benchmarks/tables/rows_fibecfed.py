"""FibecFed and its ideas one by one, beside plain averaging of LoRA."""

from benchmarks.tables.definition import Row, Table

_TRAINING = {"local_epochs": 1, "batch_size": 8, "learning_rate": 1e-3}
_LORA = {"kind": "lora", "r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]}

ROWS = (
    Row("FedAvg over LoRA", "fedavg", _TRAINING, _LORA),
    Row("FibecFed", "fibecfed", _TRAINING, _LORA),
    Row("random order, the same pacing", "fibecfed", {**_TRAINING, "order_by": "random"}, _LORA),
    Row("all layers travel", "fibecfed", {**_TRAINING, "layer_count": "fixed", "layer_share": 1.0}, _LORA),
    Row("half of the layers travel", "fibecfed", {**_TRAINING, "layer_count": "fixed"}, _LORA),
    Row("all rows of private layers (no mask)", "fibecfed", {**_TRAINING, "local_share": 1.0}, _LORA),
)

TABLE = Table(name="fibecfed", rows=ROWS, rounds=20, tasks=("subj", "trec", "mr", "rte"), alpha=1.0, train_rows=3000)
