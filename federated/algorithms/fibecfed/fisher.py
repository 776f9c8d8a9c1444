"""How hard an example is for a model: the trace of its diagonal Fisher information (Liu et al., EMNLP 2024).

f_i = |grad loss_i|^2 over the LoRA factors, with the true label, in evaluation mode. While B is zero, as at the
start, the gradient of A is exactly zero, and B alone speaks.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from federated.algorithms.fibecfed.config import FibecFedConfig
from federated.algorithms.fibecfed.layers import first_factors
from federated.contract import JobDeclined
from federated.maths.generator import stream_key, words
from federated.maths.per_example import linear_maps, observe, squared_norms
from federated.session import TrainingSession


def difficulty(session: TrainingSession, config: FibecFedConfig, layered: Mapping[int, Sequence[str]]) -> Tensor:
    """(examples,) float32; a smaller one is admitted earlier."""
    if config.order_by == "random":
        return words(stream_key(session.seed, "order of difficulty"), 0, session.examples).float()
    lengths = token_counts(session, config.score_batch_size)
    if config.order_by == "length":
        return lengths.float()
    # Batches of equal lengths have nothing to fill up.
    order = torch.argsort(lengths, stable=True).tolist()
    if config.order_by == "loss":
        return losses(session, order, config.score_batch_size)
    scores = fisher_traces(session, layered, order, config.score_batch_size)
    return -scores if config.order_by == "reversed" else scores


def token_counts(session: TrainingSession, size: int) -> Tensor:
    """Tokens of each example, (examples,) int64."""
    counts = torch.zeros(session.examples, dtype=torch.int64)
    for batch in session.batches(range(session.examples), size):
        counts[list(batch.indices)] = batch.mask.sum(dim=1).cpu()
    return counts


def losses(session: TrainingSession, order: Sequence[int], size: int) -> Tensor:
    """The loss of each example, (examples,) float32, CPU."""
    session.training(False)
    told = torch.zeros(session.examples)
    with torch.no_grad():
        for batch in session.batches(order, size):
            told[list(batch.indices)] = session.loss(batch, "none").float().cpu()
    return told


def fisher_traces(
    session: TrainingSession, layered: Mapping[int, Sequence[str]], order: Sequence[int], size: int
) -> Tensor:
    """f of each example that `order` names, (session.examples,) float32, CPU: one forward and backward a batch.

    `layered`: the factors of each layer. Which trainables require a gradient is changed. Raises JobDeclined for a
    factor of what is not a linear map.
    """
    maps = factor_maps(session, [name for names in layered.values() for name in names])
    # From these on upwards every output has a gradient, and no other weight's is worked out.
    roots = set(first_factors(layered[min(layered)]))
    session.train_all_except([name for name in session.trainables if name not in roots])
    session.training(False)
    traces = torch.zeros(session.examples)
    summed = [torch.zeros(0)]

    def seen(_: str, inputs: Tensor, gradients: Tensor) -> None:
        summed[0] = summed[0] + squared_norms(inputs, gradients)

    with observe(maps, seen):
        for batch in session.batches(order, size):
            summed[0] = torch.zeros(batch.examples, device=session.device)
            torch.autograd.backward(session.loss(batch, "sum"))
            traces[list(batch.indices)] = summed[0].cpu()
    for name in roots:
        session.trainables[name].grad = None
    return traces


def factor_maps(session: TrainingSession, names: Sequence[str]) -> dict[str, nn.Linear]:
    """The modules of these factors. Raises JobDeclined for one that is not a linear map."""
    try:
        return linear_maps(session.model, {name: session.trainables[name] for name in names})
    except ValueError as error:
        raise JobDeclined("factors_not_linear", f"{error}: its examples cannot be scored one by one") from error
