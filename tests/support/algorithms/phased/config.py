from typing import Literal

from federated.contract import AlgorithmConfig


class PhasedConfig(AlgorithmConfig):
    """`end_at`: the sum at which it is done. `broken`: the step that raises. `everybody`: train rounds ask all."""

    end_at: float = 100.0
    broken: Literal["start", "plan", "aggregate", "evaluate"] | None = None
    everybody: bool = False
