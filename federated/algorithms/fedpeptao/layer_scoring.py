"""What a client measures before training: how well each layer tells examples apart, and how many must be kept."""

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
    """The separation of each layer over one batch, tokens that only fill it up left out, through the model as it is.

    Raises JobDeclined (layers_unknown) where the session's layers are not those of the model's facts.
    """
    layers = layers_of(session, range(session.facts.layers))
    found: dict[int, float] = {}
    mask = batch.mask

    def measure(layer: int, output: Any) -> None:
        hidden: Tensor = output if isinstance(output, Tensor) else output[0]
        found[layer] = separation(hidden * mask.unsqueeze(-1).to(hidden.device, hidden.dtype))

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
    return [found[layer] for layer in range(len(hooks))]


def shares_of_prompts(session: TrainingSession, batch: Batch, values: Mapping[str, Tensor]) -> list[float]:
    """The share of the prompts' Hessian, at `values`, that must be kept, by each of `kept_shares.WAYS`.

    The session comes at its start and is left at `values`. Raises JobDeclined where the model's loss cannot be
    differentiated twice.
    """
    names = [PROMPT_EMBEDDINGS]
    before = values_of(session, names), gradient_of(session, batch, names)
    session.load(values)
    shares = estimate_layer_shares(session, batch, names, before=before)
    return [shares[way] for way in ESTIMATORS]
