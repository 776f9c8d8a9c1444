"""What a client measures before training: how well each layer tells examples apart, and how many must be kept."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from federated.algorithms.fedpeptao.prompt_layers import separation
from federated.contract import JobDeclined
from federated.maths.curvature import Curvature
from federated.maths.generator import stream_key
from federated.maths.spectrum import eigengap, lanczos, lipschitz, plateau, rademacher
from federated.session import Batch, TrainingSession
from federated.trainable import PROMPT_EMBEDDINGS


def layer_scores(session: TrainingSession, batch: Batch) -> list[float]:
    """The separation of each layer over one batch, tokens that only fill it up left out, through the model as it is.

    Raises ValueError if the session's layers are not those of the model's facts.
    """
    layers = session.layers()
    if len(layers) != session.facts.layers:
        kinds = ", ".join(sorted({type(layer).__name__ for layer in layers})) or "none"
        raise ValueError(f"{len(layers)} layers were found ({kinds}), expected {session.facts.layers}")
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


def kept_shares(session: TrainingSession, batch: Batch, values: Mapping[str, Tensor]) -> list[float]:
    """The share of the prompts' Hessian, at `values`, that must be kept, by each of `WAYS`.

    The session comes at its start and is left at `values`; the way between them tells the eigengap how the curvature
    changes. Raises JobDeclined where the model's loss cannot be differentiated twice.
    """
    session.training(False)
    prompt = session.trainables[PROMPT_EMBEDDINGS]
    before = prompt.detach().flatten().clone()
    (gradient_before,) = torch.autograd.grad(session.loss(batch), prompt)
    session.load(values)
    step = prompt.detach().flatten() - before
    try:
        with session.differentiable_twice():
            curvature = Curvature(session.loss(batch), [prompt])
            key = stream_key(session.seed, "start of the Lanczos iteration")
            spectrum = lanczos(curvature.times, rademacher(key, len(step), step.device))
            bend = lipschitz(curvature.gradient - gradient_before.flatten(), curvature.times(step), step)
    except (NotImplementedError, RuntimeError) as error:
        if "derivative" not in str(error) and "differentia" not in str(error):
            raise
        detail = f"{error}: use layer_count 'fixed', or a model with attn_implementation 'eager'"
        raise JobDeclined("second_derivative_missing", detail) from error
    finally:
        for parameter in session.trainables.values():
            parameter.grad = None
    return [plateau(spectrum), eigengap(spectrum, bend)]
