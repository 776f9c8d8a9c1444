"""Tensors that every client trains and the server averages as they are: heads, biases, and what goes with them.

A tensor that starts from the base model's own value travels as a difference both ways. Its base value, told once by
the first cohort as `NAME/base`, stands in the state for the exported adapter: the coordinator has no base model.
`NAME/frozen` is a value that nobody trains and no seed makes: an initial adapter gave it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from federated.contract import ClientUpdate, FederationRefused
from federated.maths.averaging import weighted_sum
from federated.maths.initialization import seeded_values
from federated.patterns import first_fitting
from federated.payloads.payload import LazyTensor, Payload
from federated.protocol import is_metric
from federated.session import TrainingSession
from federated.trainable import Lora, ModelFacts, TensorFacts

BASE = "/base"
FROZEN = "/frozen"
_MARKS_OF_B = (".lora_B.weight", ".lora_embedding_B")
# Nodes load the same weights in float32, bfloat16 or float16: so far may their values be apart.
_BASE_ROUNDING, _BASE_ZERO = 2.0**-7, 2.0**-24
UPLOAD_DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# A client's metrics that make sense as a mean over clients, and what they are called in the round's.
_CLIENT_METRICS = {"loss": "train_loss", "accuracy": "train_accuracy", "update_norm": "update_norm"}


def checked_initial(
    model: ModelFacts, initial: Payload | None, scale: Callable[[str], float] | None = None
) -> dict[str, Tensor]:
    """The tensors of an initial adapter by canonical name, with its factors B such that the products stay.

    `scale`: what this federation multiplies the product of a module's factors with; the fact `scales` of `initial`
    has what its own did. Raises ValueError naming a tensor that does not fit.
    """
    given = dict(initial or {})
    known = {tensor.name: tensor for tensor in (*model.tensors, *model.seeded)}
    for name, value in given.items():
        _check_initial(name, value, known.get(name))
    scales: Mapping[str, float] = {} if initial is None or scale is None else initial.facts.get("scales", {})
    for module, earlier in scales.items():
        for name in (module + mark for mark in _MARKS_OF_B):
            if name in given and scale is not None and scale(module) != earlier:
                given[name] = (given[name].double() * (earlier / scale(module))).float()
    return given


def factor_scale(trainable: Lora, module: str) -> float:
    """What PEFT multiplies the product of a module's factors with: alpha over the rank, or over its root."""
    rank = first_fitting(trainable.rank_pattern, module, trainable.r)
    return trainable.alpha_of(module) / (math.sqrt(rank) if trainable.use_rslora else rank)


def last_linear(head: Sequence[TensorFacts]) -> list[str]:
    """Names of the tensors of a head's last map, the one with the fewest outputs: the classes.

    What stands below it in a head (a dense layer before the classifier) would outweigh all else that travels.
    """
    rows = {tensor.name.rpartition(".")[0]: tensor.shape[0] for tensor in head}
    last = min(rows, key=lambda module: (rows[module], module), default=None)
    return [tensor.name for tensor in head if tensor.name.rpartition(".")[0] == last]


def differences(model: ModelFacts) -> list[str]:
    """Names of the tensors that travel as a difference."""
    return [tensor.name for tensor in model.tensors if tensor.initialisation.kind == "base"]


def expected_bases(state: Payload, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows of `expects` for the base values of these differences that the state does not know yet."""
    return {
        name + BASE: {"dtype": "F32", "shape": list(state.shape(name)), "in_norm": False}
        for name in names
        if name + BASE not in state
    }


def averaged(
    state: Payload, name: str, updates: Sequence[ClientUpdate], dtype: torch.dtype = torch.float32
) -> Tensor:
    """The current value of a tensor + the mean of the updates' changes, by weight, in the order given."""
    weights = [update.weight for update in updates]
    changes = [update.payload.lazy(name) for update in updates]
    return weighted_sum(changes, weights, divisor=math.fsum(weights), base=state.lazy(name), dtype=dtype)


def dissenters(updates: Mapping[int, Payload]) -> dict[int, str]:
    """Ordinals of clients whose base values are not the most clients', with the first tensor that differs.

    Of two equally common bases that of the lowest ordinal holds.
    """
    distinct: list[tuple[Payload, list[int]]] = []
    for ordinal, update in sorted(updates.items()):
        same = next((those for base, those in distinct if other_base(base, update, exact=True) is None), None)
        if same is None:
            distinct.append((update, [ordinal]))
        else:
            same.append(ordinal)
    support = [
        sum(len(those) for other, those in distinct if other_base(base, other) is None) for base, _ in distinct
    ]
    majority = distinct[support.index(max(support))][0] if distinct else None
    unlike = {those[0]: other_base(majority, base) for base, those in distinct if majority is not None}
    return {ordinal: name for _, those in distinct for ordinal in those if (name := unlike[those[0]]) is not None}


def other_base(one: Payload, other: Payload, *, exact: bool = False) -> str | None:
    """The first tensor whose base value differs; unless `exact`, by more than a loaded precision makes it."""
    for name in one:
        if name.endswith(BASE):
            pair = one[name], other[name]
            if not torch.equal(*pair) and (exact or not torch.allclose(*pair, rtol=_BASE_ROUNDING, atol=_BASE_ZERO)):
                return name
    return None


def told_bases(updates: Sequence[ClientUpdate]) -> dict[str, LazyTensor]:
    """The base values that came with these updates: the first one's, once `dissenters` are out."""
    first = updates[0].payload
    return {name: first.lazy(name) for name in first if name.endswith(BASE)}


def absolute(state: Payload, name: str, names: Sequence[str]) -> Tensor:
    """The value of a tensor of the state; of one of the differences `names`, with its base value added.

    Raises ValueError before the first round if it is a difference.
    """
    if name not in names:
        return state[name]
    if name + BASE not in state:
        raise FederationRefused(f"tensor {name!r} is a difference, and no client has told its base value yet")
    return (state[name + BASE].double() + state[name].double()).float()


def untrained_values(state: Payload) -> dict[str, Tensor]:
    """What stands in an adapter and nobody trains: values that the seed makes, and those that were given."""
    seeded = seeded_values(state.facts["seed"], state.facts["seeded"])
    return seeded | {name.removesuffix(FROZEN): state[name] for name in state if name.endswith(FROZEN)}


def training_metrics(updates: Sequence[ClientUpdate]) -> dict[str, float]:
    """`train_loss`, `train_accuracy`, `update_norm`: means over those who told them, weighted as the updates are."""
    return mean_metrics(updates, _CLIENT_METRICS, [update.weight for update in updates])


def mean_metrics(
    updates: Sequence[ClientUpdate], names: Mapping[str, str], weights: Sequence[float]
) -> dict[str, float]:
    """Means over those who told a metric, as a number that can be one; `names`: what clients call it -> what the
    round does.
    """
    metrics: dict[str, float] = {}
    for theirs, name in names.items():
        pairs = ((w, one.metrics.get(theirs, math.nan)) for one, w in zip(updates, weights, strict=True))
        told = [(w, value) for w, value in pairs if is_metric(value)]
        if told:
            metrics[name] = math.fsum(w * value for w, value in told) / math.fsum(w for w, _ in told)
    return metrics


def base_values(instruction: Payload, session: TrainingSession) -> dict[str, Tensor]:
    """On the client: what an instruction asks of the base model; ask while the difference is still zero."""
    asked = [name for name in instruction.facts["expects"] if name.endswith(BASE)]
    return {name: session.trainables[name.removesuffix(BASE)].detach().float().cpu().clone() for name in asked}


def norm(update: Mapping[str, Tensor]) -> float:
    """Euclidean norm over all tensors of an update."""
    return math.sqrt(math.fsum(float(value.double().square().sum()) for value in update.values()))


def _check_initial(name: str, value: Tensor, tensor: TensorFacts | None) -> None:
    if tensor is None:
        raise FederationRefused(f"initial adapter: tensor {name!r} is not one of this model's")
    if tuple(value.shape) != tensor.shape:
        shape = list(value.shape)
        raise FederationRefused(f"initial adapter: tensor {name!r} has shape {shape}, expected {list(tensor.shape)}")
    if tensor.initialisation.kind == "base":
        raise FederationRefused(
            f"initial adapter: tensor {name!r} is a value, but it travels as a difference from the base"
        )
