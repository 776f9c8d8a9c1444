"""LoRA at each client's own rank: products are averaged, and each client gets the best factors of its rank."""

from federated.algorithms.flexlora.config import FlexLoRAConfig
from federated.contract import Algorithm

ALGORITHM = Algorithm(
    name="flexlora",
    title="LoRA at each client's own rank (FlexLoRA; also raFLoRA, HetLoRA, FLoRA)",
    config=FlexLoRAConfig,
    server="federated.algorithms.flexlora.server:FlexLoRAServer",
    client="federated.algorithms.flexlora.client:FlexLoRAClient",
    trainables=frozenset({"lora"}),
    shard_by="layer",
    example={"local_steps": 12, "batch_size": 8, "learning_rate": 3e-3},
    example_trainable={"kind": "lora", "r": 16, "lora_alpha": 16, "target_modules": ["query", "value"]},
)
