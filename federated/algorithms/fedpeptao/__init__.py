"""Prompt tuning that shares the prompts of selected layers, with adaptive optimization on both sides (FedPepTAO)."""

from federated.algorithms.fedpeptao.config import FedPepTAOConfig
from federated.contract import Algorithm

ALGORITHM = Algorithm(
    name="fedpeptao",
    title="Federated prompt tuning with chosen layers and adaptive optimization (FedPepTAO)",
    config=FedPepTAOConfig,
    server="federated.algorithms.fedpeptao.server:FedPepTAOServer",
    client="federated.algorithms.fedpeptao.client:FedPepTAOClient",
    trainables=frozenset({"prefix"}),
    personal=True,
    prepares=True,
    example={"local_steps": 24, "batch_size": 8, "learning_rate": 0.01},
    example_trainable={"kind": "prefix", "num_virtual_tokens": 20},
)
