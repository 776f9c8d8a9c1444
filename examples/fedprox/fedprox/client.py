"""Client half of FedProx (Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020)."""

import torch

from federated.algorithm_kit.averaging import DifferenceClient
from federated.algorithm_kit.local_training import Hooks
from federated.session import TrainingSession
from fedprox.config import FedProxConfig


class FedProxClient(DifferenceClient[FedProxConfig]):
    def hooks(self, session: TrainingSession) -> Hooks:
        pairs = [(value, value.detach().clone()) for value in session.trainables.values()]

        def penalty() -> torch.Tensor:
            return self._config.mu / 2 * torch.stack([(w - received).square().sum() for w, received in pairs]).sum()

        return Hooks(penalty=penalty)
