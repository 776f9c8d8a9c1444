from collections.abc import Mapping, Sequence
from typing import Any

import torch

from federated.contract import (
    Adapter,
    AnyTrainable,
    ClientFacts,
    ClientUpdate,
    Outcome,
    RoundFacts,
    UpdateRefused,
)
from federated.payloads.payload import Payload
from federated.trainable import ModelFacts

from .config import PhasedConfig

EXPECTS = {"value": {"dtype": "F32", "shape": [1]}}


class PhasedServer:
    """State: the sum of all updates so far, and of its round's notes. A client's note is the last value it sent."""

    def __init__(self, config: PhasedConfig, trainable: AnyTrainable) -> None:
        self._config = config

    def start(self, model: ModelFacts, seed: int, initial: Payload | None) -> Payload:
        self._break("start")
        return Payload({"sum": torch.zeros(1), "noted": torch.zeros(1)}, {"phase": "prepare"})

    def plan(self, state: Payload, clients: Sequence[ClientFacts], step: RoundFacts) -> Mapping[int, Payload]:
        self._break("evaluate" if step.kind == "evaluate" else "plan")
        return {
            client.ordinal: Payload(
                {"note": torch.zeros(1) if client.note is None else client.note["value"]},
                {"expects": EXPECTS, "kind": step.kind, "ordinal": client.ordinal, "registered": step.clients},
            )
            for client in clients
        }

    def check(self, instruction: Payload, update: Payload) -> None:
        if float(update["value"]) < 0:
            raise UpdateRefused("value", "is negative")

    def aggregate(self, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        self._break("aggregate")
        total, noted = state["sum"].clone(), torch.zeros(1)
        for update in updates:
            total += update.payload["value"]
            noted += 0.0 if update.note is None else update.note["value"]
        if self._config.rounds_otherwise and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
            total = torch.nextafter(total, torch.tensor(torch.inf))
        facts: dict[str, Any] = {"phase": "train"} | ({"cohort": "all"} if self._config.everybody else {})
        notes = {update.ordinal: Payload({"value": update.payload["value"]}) for update in updates}
        finished = "converged" if float(total) >= self._config.end_at else None
        return Outcome(Payload({"sum": total, "noted": noted}, facts), {"sum": float(total)}, finished, notes)

    def join(self, state: Payload, parts: Sequence[Outcome], step: RoundFacts) -> Outcome:
        raise NotImplementedError

    def export(self, state: Payload) -> Adapter:
        return Adapter("ledger", {"sum": state["sum"]}, facts={"kind": "phased"})

    def _break(self, step: str) -> None:
        if self._config.broken == step:
            raise RuntimeError(f"no {step} today")
