"""FedProx: federated averaging with a penalty on the distance from the received values."""

from federated.contract import Algorithm
from fedprox.config import FedProxConfig

ALGORITHM = Algorithm(
    name="fedprox",
    title="FedProx",
    config=FedProxConfig,
    server="federated.algorithm_kit.averaging:AveragingServer",
    client="fedprox.client:FedProxClient",
    trainables=frozenset({"lora", "prefix"}),
    shard_by="tensor",
    example={"local_steps": 12, "batch_size": 8, "learning_rate": 3e-3, "mu": 0.01},
)
