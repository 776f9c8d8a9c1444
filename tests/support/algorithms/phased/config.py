from typing import Literal

from federated.contract import AlgorithmConfig


class PhasedConfig(AlgorithmConfig):
    """`end_at`: the sum at which it is done. `broken`: the step that raises. `everybody`: train rounds ask all.

    `rounds_otherwise`: its sum is one bit larger where the CPU's wide instructions are not used. `simulated`: a
    setting that no federation of the service may have.
    """

    end_at: float = 100.0
    broken: Literal["start", "plan", "aggregate", "evaluate"] | None = None
    everybody: bool = False
    rounds_otherwise: bool = False
    simulated: bool = False

    def check_served(self) -> None:
        if self.simulated:
            raise ValueError("simulated is for simulations")
