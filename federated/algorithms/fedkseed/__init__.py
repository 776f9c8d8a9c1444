"""Zeroth-order training (FedKSeed, FedKSeed-Pro): clients send scalars for fixed directions instead of weights."""

from federated.algorithms.fedkseed.config import FedKSeedConfig
from federated.contract import Algorithm

ALGORITHM = Algorithm(
    name="fedkseed",
    title="Zeroth-order training by seeds (FedKSeed, FedKSeed-Pro)",
    config=FedKSeedConfig,
    server="federated.algorithms.fedkseed.server:FedKSeedServer",
    client="federated.algorithms.fedkseed.client:FedKSeedClient",
    ledger="federated.algorithms.fedkseed.ledger:weights",
    trainables=frozenset({"full", "lora"}),
    gradients=False,
    goes_on=False,
    example={"local_steps": 300, "batch_size": 8, "learning_rate": 1.5e-3, "schedule": "cosine"},
    example_trainable={"kind": "full", "names": ["*.pooler.*", "classifier.*"]},
)
