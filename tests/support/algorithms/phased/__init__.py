from federated.contract import Algorithm

from .config import PhasedConfig

ALGORITHM = Algorithm(
    name="phased",
    title="One round of preparation, then sums; ends by itself",
    config=PhasedConfig,
    server="federated.algorithms.phased.server:PhasedServer",
    client="federated.algorithms.phased.client:PhasedClient",
    personal=True,
)
