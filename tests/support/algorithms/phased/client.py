from federated.contract import AnyTrainable, ClientResult, View
from federated.payloads.payload import Payload
from federated.session import TrainingSession

from .config import PhasedConfig


class PhasedClient:
    """Never run: the tests play the workers."""

    def __init__(self, config: PhasedConfig, trainable: AnyTrainable) -> None:
        self._config = config

    def apply(self, instruction: Payload, session: TrainingSession, memory: Payload | None, view: View) -> None:
        raise NotImplementedError

    def run(self, instruction: Payload, session: TrainingSession, memory: Payload | None) -> ClientResult:
        raise NotImplementedError
