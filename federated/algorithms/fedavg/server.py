"""Server half of federated averaging: plain averaging, a server optimizer on the mean update, frozen LoRA A.

State beside that of `federated.algorithm_kit.averaging`: `NAME/momentum`, `NAME/second`, the moments of a tensor in
the server's optimizer.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from federated.algorithm_kit.averaging import AveragingServer
from federated.algorithms.fedavg.config import FedAvgConfig
from federated.algorithms.fedavg.server_optimizers import moments, server_step
from federated.contract import ClientUpdate
from federated.maths.averaging import weighted_sum
from federated.payloads.payload import LazyTensor, Payload
from federated.trainable import ModelFacts, TensorFacts

_FACTORS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}


class FedAvgServer(AveragingServer[FedAvgConfig]):
    """Next value = current value + server optimizer(mean of the updates, weighted by training examples)."""

    @property
    def upload_dtype(self) -> str:
        return self._config.upload_dtype

    def frozen_tensors(self, model: ModelFacts) -> Sequence[TensorFacts]:
        """With `freeze_a`, the LoRA factors that start at random."""
        return [tensor for tensor in model.tensors if self._config.freeze_a and _is_random_factor(tensor)]

    def first_state_of(self, tensor: TensorFacts) -> Mapping[str, LazyTensor]:
        """The moments of the server's optimizer."""
        return {
            moment: LazyTensor(torch.float32, tensor.shape, partial(torch.full, tensor.shape, first))
            for moment, first in moments(self._config).items()
        }

    def next_values(self, state: Payload, updates: Sequence[ClientUpdate], name: str) -> Mapping[str, Tensor]:
        """The next value of a tensor and its next moments."""
        changes = [update.payload.lazy(name) for update in updates]
        weights = [update.weight for update in updates]
        total = math.fsum(weights)
        if self._config.server_optimizer == "none":
            divisor = total / self._config.server_learning_rate
            return {name: weighted_sum(changes, weights, divisor=divisor, base=state.lazy(name))}
        mean = weighted_sum(changes, weights, divisor=total, dtype=torch.float64)
        old_moments = {moment: state[f"{name}/{moment}"] for moment in moments(self._config)}
        value, next_moments = server_step(self._config, state[name], mean, old_moments)
        tensors_by_name = {name: value} | {f"{name}/{moment}": tensor for moment, tensor in next_moments.items()}
        return {key: tensor.float() for key, tensor in tensors_by_name.items()}


def _is_random_factor(tensor: TensorFacts) -> bool:
    # PEFT initializes an embedding's B at random and its A at zero, the reverse of all other modules.
    return tensor.initialisation.kind in ("uniform", "normal") and not _FACTORS.isdisjoint(tensor.name.split("."))
