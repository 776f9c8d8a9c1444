"""Weighted averaging of local training (FedAvg), with FedProx, server optimizers and frozen LoRA A."""

from federated.algorithms.fedavg.config import FedAvgConfig
from federated.contract import Algorithm

ALGORITHM = Algorithm(
    name="fedavg",
    title="Federated averaging (FedAvg, FedProx, FedOpt, FFA-LoRA)",
    config=FedAvgConfig,
    server="federated.algorithms.fedavg.server:FedAvgServer",
    client="federated.algorithms.fedavg.client:FedAvgClient",
    trainables=frozenset({"lora", "prefix"}),
    shard_by="tensor",
    example={"local_steps": 12, "batch_size": 8, "learning_rate": 3e-3},
    example_trainable={"kind": "lora", "r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]},
)
