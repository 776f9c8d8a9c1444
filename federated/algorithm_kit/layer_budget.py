"""Which share of the layers must be kept, read from the Hessian of one batch's loss; part of a preparation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from federated.contract import JobDeclined
from federated.maths.curvature import Curvature
from federated.maths.generator import stream_key
from federated.maths.hessian_cost import LANCZOS_STEPS
from federated.maths.spectrum import eigengap, lanczos, lipschitz, plateau, rademacher
from federated.session import Batch, TrainingSession

# The ways a share is read, and the order in which clients tell them.
WAYS = ("spectrum", "eigengap")


def gradient_of(session: TrainingSession, batch: Batch, names: Sequence[str]) -> Tensor:
    """The loss's gradient over these trainables, end to end, in evaluation mode: (n,)."""
    session.training(False)
    return _flat(torch.autograd.grad(session.loss(batch), [session.trainables[name] for name in names]))


def values_of(session: TrainingSession, names: Sequence[str]) -> Tensor:
    """These trainables, end to end, copied: (n,)."""
    return _flat([session.trainables[name].detach() for name in names]).clone()


def kept_shares(
    session: TrainingSession,
    batch: Batch,
    names: Sequence[str],
    *,
    before: tuple[Tensor, Tensor],
    iterations: int = LANCZOS_STEPS,
) -> dict[str, float]:
    """The share by each of `WAYS`, over the trainables `names` where they stand now.

    before: values and gradient (n,) of an earlier place; the way from there tells how the curvature changes.
    Raises JobDeclined (second_derivative_missing) where the model's loss cannot be differentiated twice.
    """
    session.training(False)
    step = values_of(session, names) - before[0]
    start = rademacher(stream_key(session.seed, "start of the Lanczos iteration"), len(step), step.device)
    try:
        with session.differentiable_twice():
            bent = Curvature(session.loss(batch), [session.trainables[name] for name in names])
            spectrum = lanczos(bent.times, start, iterations)
            bend = lipschitz(bent.gradient - before[1], bent.times(step), step)
    except (NotImplementedError, RuntimeError) as error:
        if "derivative" not in str(error) and "differentia" not in str(error):
            raise
        detail = f"{error}: use layer_count 'fixed', or a model with attn_implementation 'eager'"
        raise JobDeclined("second_derivative_missing", detail) from error
    finally:
        for parameter in session.trainables.values():
            parameter.grad = None
    return {"spectrum": plateau(spectrum), "eigengap": eigengap(spectrum, bend)}


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
