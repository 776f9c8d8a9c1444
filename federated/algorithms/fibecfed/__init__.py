"""Fisher information: easy examples first, chosen layers travel, a sparse part of the others stays private."""

from federated.algorithms.fibecfed.config import FibecFedConfig
from federated.contract import Algorithm

ALGORITHM = Algorithm(
    name="fibecfed",
    title="Fisher-based curriculum, chosen layers and sparse private parts (FibecFed)",
    config=FibecFedConfig,
    server="federated.algorithms.fibecfed.server:FibecFedServer",
    client="federated.algorithms.fibecfed.client:FibecFedClient",
    personal=True,
    prepares=True,
    example={"local_steps": 12, "batch_size": 8, "learning_rate": 3e-3},
    example_trainable={"kind": "lora", "r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]},
)
