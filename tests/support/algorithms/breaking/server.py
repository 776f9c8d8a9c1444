from collections.abc import Mapping, Sequence

import torch

from federated.contract import Adapter, AnyTrainable, ClientFacts, ClientUpdate, Outcome, RoundFacts
from federated.payloads.payload import Payload
from federated.trainable import ModelFacts
from tests.support.algorithms.breaking.exceptions import ENDINGS, by_name

from .config import BreakingConfig


class BreakingServer:
    """Breaks at its stage, and does nothing at the others."""

    def __init__(self, config: BreakingConfig, trainable: AnyTrainable) -> None:
        self._config = config

    def start(self, model: ModelFacts, seed: int, initial: Payload | None) -> Payload:
        self._break("start")
        return Payload({"value": torch.zeros(1)})

    def plan(self, state: Payload, clients: Sequence[ClientFacts], step: RoundFacts) -> Mapping[int, Payload]:
        self._break("plan")
        expects = {"value": {"dtype": "F32", "shape": [1]}}
        return {client.ordinal: Payload({}, {"expects": expects}) for client in clients}

    def check(self, instruction: Payload, update: Payload) -> None:
        self._break("check")

    def aggregate(self, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        self._break("aggregate")
        return Outcome(state)

    def join(self, state: Payload, parts: Sequence[Outcome], step: RoundFacts) -> Outcome:
        raise NotImplementedError

    def export(self, state: Payload) -> Adapter:
        self._break("export")
        return Adapter("ledger", {"value": state["value"]}, facts={"kind": "breaking"})

    def _break(self, stage: str) -> None:
        if self._config.stage == stage:
            if (ending := ENDINGS.get(self._config.error)) is not None:
                ending()
            raise by_name()[self._config.error]()
