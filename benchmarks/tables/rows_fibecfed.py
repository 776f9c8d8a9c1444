"""Table of FibecFed: ablations of its parts, and plain averaging of LoRA for comparison."""

from benchmarks.tables.definition import Row
from benchmarks.tables.four_tasks import table_of

TRAINING = {"local_epochs": 2, "batch_size": 8, "learning_rate": 2e-3}
LORA = {"kind": "lora", "r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]}
# As in the published examples. The Hessian of 20 clients would cost more than the training in this table.
HALF_OF_LAYERS = {**TRAINING, "layer_count": "fixed"}


ROWS = (
    Row("FedAvg over LoRA", "fedavg", TRAINING, LORA),
    Row("FibecFed", "fibecfed", HALF_OF_LAYERS, LORA),
    Row("random order, the same pacing", "fibecfed", {**HALF_OF_LAYERS, "order_by": "random"}, LORA),
    Row("all layers travel", "fibecfed", {**HALF_OF_LAYERS, "layer_share": 1.0}, LORA),
    Row("all rows of private layers (no mask)", "fibecfed", {**HALF_OF_LAYERS, "local_share": 1.0}, LORA),
)

TABLE = table_of("fibecfed", ROWS)
