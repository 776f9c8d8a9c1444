"""Client half of federated averaging: trains from the received values and sends the difference."""

import torch
from torch import Tensor

from federated.algorithm_kit.averaging import DifferenceClient
from federated.algorithm_kit.local_training import Hooks
from federated.algorithms.fedavg.config import FedAvgConfig
from federated.session import TrainingSession


class FedAvgClient(DifferenceClient[FedAvgConfig]):
    """The client of plain averaging, with FedProx's penalty where `proximal_mu` is set."""

    @property
    def upload_dtype(self) -> str:
        return self._config.upload_dtype

    def hooks(self, session: TrainingSession) -> Hooks:
        mu = self._config.proximal_mu
        if mu == 0:
            return Hooks()
        anchors = [(value, value.detach().clone()) for value in session.trainables.values() if value.requires_grad]

        def penalty() -> Tensor:
            return mu / 2 * torch.stack([(value - anchor).square().sum() for value, anchor in anchors]).sum()

        return Hooks(penalty=penalty)
