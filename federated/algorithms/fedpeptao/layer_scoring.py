"""Layer scores of a client before training, and estimates of the share of layers that must travel."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from federated.algorithm_kit.layer_budget import ESTIMATORS, estimate_layer_shares, gradient_of, values_of
from federated.algorithm_kit.model_layers import layers_of
from federated.algorithms.fedpeptao.prompt_layers import separation
from federated.session import Batch, TrainingSession
from federated.trainable import PROMPT_EMBEDDINGS


def layer_scores(session: TrainingSession, batch: Batch) -> list[float]:
    """The separation of each layer over one batch without padding tokens, through the current model.

    Raises JobDeclined (layers_unknown) if the session's layers are not those of the model's facts.
    """
    layers = layers_of(session, range(session.facts.layers))
    scores: dict[int, float] = {}
    mask = batch.mask

    def measure(layer: int, output: Any) -> None:
        hidden: Tensor = output if isinstance(output, Tensor) else output[0]
        scores[layer] = separation(hidden * mask.unsqueeze(-1).to(hidden.device, hidden.dtype))

    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output, index=index: measure(index, output))
        for index, layer in enumerate(layers)
    ]
    session.training(False)
    try:
        with torch.no_grad():
            session.loss(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [scores[layer] for layer in range(len(hooks))]


def shares_of_prompts(session: TrainingSession, batch: Batch, values: Mapping[str, Tensor]) -> list[float]:
    """The share by each of `layer_budget.ESTIMATORS`, from the prompts' Hessian at `values`.

    The session must be at its start, and is left at `values`. Raises JobDeclined if the model's loss cannot be
    differentiated twice.
    """
    names = [PROMPT_EMBEDDINGS]
    before = values_of(session, names), gradient_of(session, batch, names)
    session.load(values)
    shares = estimate_layer_shares(session, batch, names, before=before)
    return [shares[name] for name in ESTIMATORS]
