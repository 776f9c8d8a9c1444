"""Shared tensors: those that every client trains and the server averages elementwise, such as heads and biases.

A tensor that starts from the base model's own value travels as a difference in both directions. The first cohort
reports its base value once, as `NAME/base`. The state keeps it for the exported adapter, because the coordinator has
no base model.
`NAME/frozen` is an untrained value that comes from an initial adapter and not from the seed.
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
# Tolerance between base values of nodes that load the same weights in float32, bfloat16 or float16.
_BASE_ROUNDING, _BASE_ZERO = 2.0**-7, 2.0**-24
UPLOAD_DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Metrics of a client that are averaged over clients, and their names among the metrics of the round.
_CLIENT_METRICS = {"loss": "train_loss", "accuracy": "train_accuracy", "update_norm": "update_norm"}


def initial_tensors(
    model: ModelFacts, initial: Payload | None, scale: Callable[[str], float] | None = None
) -> dict[str, Tensor]:
    """The tensors of an initial adapter by canonical name, with its factors B rescaled to keep the products.

    `scale`: this federation's factor on the product of a module's LoRA matrices. The fact `scales` of `initial` has
    the factors of the adapter's own federation. Raises ValueError naming a tensor that does not fit.
    """
    tensors = dict(initial or {})
    specs = {tensor.name: tensor for tensor in (*model.tensors, *model.seeded)}
    for name, value in tensors.items():
        _check_initial(name, value, specs.get(name))
    scales: Mapping[str, float] = {} if initial is None or scale is None else initial.facts.get("scales", {})
    for module, earlier in scales.items():
        for name in (module + mark for mark in _MARKS_OF_B):
            if name in tensors and scale is not None and scale(module) != earlier:
                tensors[name] = (tensors[name].double() * (earlier / scale(module))).float()
    return tensors


def factor_scale(trainable: Lora, module: str) -> float:
    """PEFT's factor on the product of a module's LoRA matrices: alpha over the rank, or over its square root."""
    rank = first_fitting(trainable.rank_pattern, module, trainable.r)
    return trainable.alpha_of(module) / (math.sqrt(rank) if trainable.use_rslora else rank)


def last_linear_names(head: Sequence[TensorFacts]) -> list[str]:
    """Names of the tensors of a head's last linear map: the one with the fewest outputs, the classes.

    A dense layer below it would outweigh all other tensors that travel.
    """
    rows = {tensor.name.rpartition(".")[0]: tensor.shape[0] for tensor in head}
    last = min(rows, key=lambda module: (rows[module], module), default=None)
    return [tensor.name for tensor in head if tensor.name.rpartition(".")[0] == last]


def difference_names(model: ModelFacts) -> list[str]:
    """Names of the tensors that travel as a difference from the base model."""
    return [tensor.name for tensor in model.tensors if tensor.initialisation.kind == "base"]


def base_value_schema(state: Payload, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Schema rows for the base values of these differences that the state does not have yet."""
    return {
        name + BASE: {"dtype": "F32", "shape": list(state.shape(name)), "in_norm": False}
        for name in names
        if name + BASE not in state
    }


def add_weighted_mean(
    state: Payload, name: str, updates: Sequence[ClientUpdate], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Current value of a tensor plus the weighted mean of the updates' changes, summed in the order of `updates`."""
    weights = [update.weight for update in updates]
    changes = [update.payload.lazy(name) for update in updates]
    return weighted_sum(changes, weights, divisor=math.fsum(weights), base=state.lazy(name), dtype=dtype)


def dissenters(updates: Mapping[int, Payload]) -> dict[int, str]:
    """Ordinals of clients whose base values differ from the majority's, with the first tensor that differs.

    If two bases are equally common, that of the lowest ordinal is taken as the majority's.
    """
    distinct: list[tuple[Payload, list[int]]] = []
    for ordinal, update in sorted(updates.items()):
        peers = next(
            (ordinals for base, ordinals in distinct if first_base_difference(base, update, exact=True) is None), None
        )
        if peers is None:
            distinct.append((update, [ordinal]))
        else:
            peers.append(ordinal)
    support = [
        sum(len(ordinals) for other, ordinals in distinct if first_base_difference(base, other) is None)
        for base, _ in distinct
    ]
    majority = distinct[support.index(max(support))][0] if distinct else None
    deviations = {
        ordinals[0]: first_base_difference(majority, base) for base, ordinals in distinct if majority is not None
    }
    return {
        ordinal: name
        for _, ordinals in distinct
        for ordinal in ordinals
        if (name := deviations[ordinals[0]]) is not None
    }


def first_base_difference(update: Payload, other: Payload, *, exact: bool = False) -> str | None:
    """The first tensor whose base value differs, unless `exact` by more than the precision of loading explains."""
    for name in update:
        if name.endswith(BASE):
            pair = update[name], other[name]
            if not torch.equal(*pair) and (exact or not torch.allclose(*pair, rtol=_BASE_ROUNDING, atol=_BASE_ZERO)):
                return name
    return None


def reported_base_values(updates: Sequence[ClientUpdate]) -> dict[str, LazyTensor]:
    """The base values in these updates, from the first of them. `dissenters` must have been removed before."""
    first = updates[0].payload
    return {name: first.lazy(name) for name in first if name.endswith(BASE)}


def with_base(state: Payload, name: str, names: Sequence[str]) -> Tensor:
    """The value of a tensor of the state, with its base value added if it is one of the differences `names`.

    Raises FederationRefused for a difference before the first round.
    """
    if name not in names:
        return state[name]
    if name + BASE not in state:
        raise FederationRefused(f"tensor {name!r} is a difference, and no client has reported its base value yet")
    return (state[name + BASE].double() + state[name].double()).float()


def untrained_values(state: Payload) -> dict[str, Tensor]:
    """The untrained tensors of an adapter: those from the seed, and those from an initial adapter."""
    values = seeded_values(state.facts["seed"], state.facts["seeded"])
    return values | {name.removesuffix(FROZEN): state[name] for name in state if name.endswith(FROZEN)}


def training_metrics(updates: Sequence[ClientUpdate]) -> dict[str, float]:
    """`train_loss`, `train_accuracy`, `update_norm`: means over the clients that report them, by update weight."""
    return mean_metrics(updates, _CLIENT_METRICS, [update.weight for update in updates])


def mean_metrics(
    updates: Sequence[ClientUpdate], names: Mapping[str, str], weights: Sequence[float]
) -> dict[str, float]:
    """Means over the clients that report a metric as a valid number.

    `names`: the client's name of a metric -> its name among the metrics of the round.
    """
    metrics: dict[str, float] = {}
    for client_name, name in names.items():
        pairs = ((w, update.metrics.get(client_name, math.nan)) for update, w in zip(updates, weights, strict=True))
        reports = [(w, value) for w, value in pairs if is_metric(value)]
        if reports:
            metrics[name] = math.fsum(w * value for w, value in reports) / math.fsum(w for w, _ in reports)
    return metrics


def base_values(instruction: Payload, session: TrainingSession) -> dict[str, Tensor]:
    """On the client: the base values that an instruction requests. Call this while the differences are still zero."""
    names = [name for name in instruction.facts["expects"] if name.endswith(BASE)]
    return {name: session.trainables[name.removesuffix(BASE)].detach().float().cpu().clone() for name in names}


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
