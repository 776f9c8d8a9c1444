from typing import Literal

from federated.contract import AlgorithmConfig, Effort


class BreakingConfig(AlgorithmConfig):
    """`error`: which exception, by `MODULE.NAME`. `stage`: where a half raises it."""

    error: str
    stage: Literal["make", "run", "apply", "start", "plan", "check", "aggregate", "export"]

    def most_effort(self, kind: Literal["prepare", "train"], examples: int) -> Effort:
        return Effort()
