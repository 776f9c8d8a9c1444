"""Estimates from the Hessian spectrum of one batch of the fraction of layers that must be shared."""

from collections.abc import Sequence

import torch
from torch import Tensor

from federated.contract import JobDeclined
from federated.maths.curvature import Curvature
from federated.maths.generator import stream_key
from federated.maths.hessian_cost import LANCZOS_STEPS
from federated.maths.spectrum import eigengap, lanczos, lipschitz, plateau, rademacher
from federated.session import Batch, TrainingSession

# The estimators of the share, in the order in which clients send their results.
ESTIMATORS = ("spectrum", "eigengap")


def gradient_of(session: TrainingSession, batch: Batch, names: Sequence[str]) -> Tensor:
    """Gradient of the loss by these trainables, concatenated, in evaluation mode: (n,)."""
    session.training(False)
    return _flat(torch.autograd.grad(session.loss(batch), [session.trainables[name] for name in names]))


def values_of(session: TrainingSession, names: Sequence[str]) -> Tensor:
    """Copy of these trainables, concatenated: (n,)."""
    return _flat([session.trainables[name].detach() for name in names]).clone()


def estimate_layer_shares(
    session: TrainingSession,
    batch: Batch,
    names: Sequence[str],
    *,
    before: tuple[Tensor, Tensor],
    iterations: int = LANCZOS_STEPS,
) -> dict[str, float]:
    """The share by each of `ESTIMATORS`, at the current values of the trainables `names`.

    before: values and gradient (n,) of an earlier point. The step from there gives the rate at which the gradient
    changes.
    Raises JobDeclined (second_derivative_missing) where the model's loss cannot be differentiated twice.
    """
    session.training(False)
    step = values_of(session, names) - before[0]
    start = rademacher(stream_key(session.seed, "start of the Lanczos iteration"), len(step), step.device)
    try:
        with session.differentiable_twice():
            curvature = Curvature(session.loss(batch), [session.trainables[name] for name in names])
            spectrum = lanczos(curvature.times, start, iterations)
            lipschitz_constant = lipschitz(curvature.gradient - before[1], curvature.times(step), step)
    except (NotImplementedError, RuntimeError) as error:
        if "derivative" not in str(error) and "differentia" not in str(error):
            raise
        detail = f"{error}: use layer_count 'fixed', or a model with attn_implementation 'eager'"
        raise JobDeclined("second_derivative_missing", detail) from error
    finally:
        for parameter in session.trainables.values():
            parameter.grad = None
    return {"spectrum": plateau(spectrum), "eigengap": eigengap(spectrum, lipschitz_constant)}


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
