"""The worker's half of federated averaging: train from the received values, answer with the difference."""

import torch
from torch import Tensor

from federated.algorithm_kit.local_training import Hooks, train
from federated.algorithm_kit.shared_tensors import BASE, FROZEN, UPLOAD_DTYPES, base_values, norm
from federated.algorithms.fedavg.config import FedAvgConfig
from federated.contract import AnyTrainable, ClientResult, View
from federated.payloads.payload import Payload
from federated.session import TrainingSession


class FedAvgClient:
    """Update = local value - received value, weighted by the number of examples; keeps no memory."""

    def __init__(self, config: FedAvgConfig, trainable: AnyTrainable) -> None:
        self._config = config

    def apply(self, instruction: Payload, session: TrainingSession, memory: Payload | None, view: View) -> None:
        """The received values; shared and own are the same."""
        session.load(_received(instruction, session))

    def run(self, instruction: Payload, session: TrainingSession, memory: Payload | None) -> ClientResult:
        """Train on all examples (FedProx where `proximal_mu` is set)."""
        session.load(_received(instruction, session))
        session.train_all_except(instruction.facts["frozen"])
        base = base_values(instruction, session)
        metrics = train(session, self._config, self._hooks(session))
        names = [name for name in instruction.facts["expects"] if not name.endswith(BASE)]
        local = session.read(names)
        update = {name: local[name] - instruction[name] for name in names}
        metrics["update_norm"] = norm(update)
        dtype = UPLOAD_DTYPES[self._config.upload_dtype]
        sent = Payload({name: value.to(dtype) for name, value in update.items()} | base)
        return ClientResult(sent, float(session.examples), metrics)

    def _hooks(self, session: TrainingSession) -> Hooks:
        mu = self._config.proximal_mu
        if mu == 0:
            return Hooks()
        anchors = [(value, value.detach().clone()) for value in session.trainables.values() if value.requires_grad]

        def penalty() -> Tensor:
            return mu / 2 * torch.stack([(value - anchor).square().sum() for value, anchor in anchors]).sum()

        return Hooks(penalty=penalty)


def _received(instruction: Payload, session: TrainingSession) -> dict[str, Tensor]:
    seeded = {name: session.start(name) for name in instruction.facts["frozen"]}
    return seeded | {name.removesuffix(FROZEN): instruction[name] for name in instruction}
