from federated.contract import AnyTrainable, ClientResult, View
from federated.payloads.payload import Payload
from federated.session import TrainingSession
from tests.support.algorithms.breaking.exceptions import by_name

from .config import BreakingConfig


class BreakingClient:
    """Breaks at its stage."""

    def __init__(self, config: BreakingConfig, trainable: AnyTrainable) -> None:
        self._config = config
        self._break("make")

    def apply(self, instruction: Payload, session: TrainingSession, memory: Payload | None, view: View) -> None:
        self._break("apply")

    def run(self, instruction: Payload, session: TrainingSession, memory: Payload | None) -> ClientResult:
        self._break("run")
        raise AssertionError

    def _break(self, stage: str) -> None:
        if stage == self._config.stage:
            raise by_name()[self._config.error]()
