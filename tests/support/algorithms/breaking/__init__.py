from federated.contract import Algorithm

from .config import BreakingConfig

ALGORITHM = Algorithm(
    name="breaking",
    title="Raises an exception in one of its halves",
    config=BreakingConfig,
    server="federated.algorithms.breaking.server:BreakingServer",
    client="federated.algorithms.breaking.client:BreakingClient",
)
