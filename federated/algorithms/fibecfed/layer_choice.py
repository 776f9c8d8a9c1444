"""How many layers travel, and which (Liu et al., EMNLP 2024; the plateau as in the same group's published code)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from federated.algorithms.fibecfed.config import FibecFedConfig
from federated.contract import JobDeclined
from federated.local_training import shuffled, train
from federated.maths.curvature import Curvature
from federated.maths.generator import stream_key
from federated.maths.spectrum import eigengap, lanczos, lipschitz, number_of_layers, plateau, rademacher
from federated.session import Batch, TrainingSession

SHARES = ("spectrum", "eigengap")


def kept_shares(session: TrainingSession, config: FibecFedConfig, names: Sequence[str]) -> dict[str, float]:
    """The share that must be kept by each of `SHARES`, of the Hessian of one batch's loss by the factors `names`.

    Trains `preparation_steps` first; undo it afterwards. Raises JobDeclined where the model's loss cannot be
    differentiated twice.
    """
    batch = next(iter(session.batches(shuffled(session.seed, 0, session.examples)[: config.batch_size], 4096)))
    parameters = [session.trainables[name] for name in names]
    before, gradient_before = _values(session, names), _gradient(session, names, batch)
    warm_up(session, config)
    step = _values(session, names) - before
    session.freeze([name for name in session.trainables if name not in set(names)])
    session.training(False)
    start = rademacher(stream_key(session.seed, "start of the Lanczos iteration"), len(step), step.device)
    try:
        with session.differentiable_twice():
            bent = Curvature(session.loss(batch), parameters)
            spectrum = lanczos(bent.times, start, config.lanczos_steps)
            bend = lipschitz(bent.gradient - gradient_before, bent.times(step), step)
    except (NotImplementedError, RuntimeError) as error:
        if "derivative" not in str(error) and "differentia" not in str(error):
            raise
        detail = f"{error}: use layer_count 'fixed', or a model with attn_implementation 'eager'"
        raise JobDeclined("second_derivative_missing", detail) from error
    return {"spectrum": plateau(spectrum), "eigengap": eigengap(spectrum, bend)}


def warm_up(session: TrainingSession, config: FibecFedConfig) -> None:
    """A few steps of ordinary training; undo them afterwards."""
    if config.preparation_steps:
        train(session, config.model_copy(update={"local_steps": config.preparation_steps}))


def chosen_layers(config: FibecFedConfig, scores: Mapping[int, float], share: float) -> list[int]:
    """The most sensitive layers, in their order in the model; of equals the lower one."""
    count = number_of_layers(share, len(scores), config.layer_factor)
    ranked = sorted(scores, key=lambda layer: (-scores[layer], layer))
    return sorted(ranked[:count])


def _gradient(session: TrainingSession, names: Sequence[str], batch: Batch) -> Tensor:
    session.training(False)
    return _flat(torch.autograd.grad(session.loss(batch), [session.trainables[name] for name in names]))


def _values(session: TrainingSession, names: Sequence[str]) -> Tensor:
    return _flat([session.trainables[name].detach() for name in names]).clone()


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
