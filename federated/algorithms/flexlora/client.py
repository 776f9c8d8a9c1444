"""The worker's half of FlexLoRA: resize the adapter to the instruction's ranks, train, answer with the difference."""

from collections.abc import Mapping

import torch
from torch import Tensor

from federated.algorithm_kit.local_training import Hooks, train
from federated.algorithm_kit.shared_tensors import BASE, FROZEN, UPLOAD_DTYPES, base_values, norm
from federated.algorithms.flexlora.config import FlexLoRAConfig
from federated.algorithms.flexlora.lora_matrices import LEARNED
from federated.contract import AnyTrainable, ClientResult, View
from federated.payloads.payload import Payload
from federated.session import TrainingSession


class FlexLoRAClient:
    """Update = local value - received value of every trained tensor, at the client's own ranks; keeps no memory."""

    def __init__(self, config: FlexLoRAConfig, trainable: AnyTrainable) -> None:
        self._config = config

    def apply(self, instruction: Payload, session: TrainingSession, memory: Payload | None, view: View) -> None:
        """The received values at their rank and scale; shared and own are the same."""
        _receive(instruction, session)

    def run(self, instruction: Payload, session: TrainingSession, memory: Payload | None) -> ClientResult:
        """Train on all examples. Ranks learned before, where there are any, keep their bits."""
        learned = _receive(instruction, session)
        base = base_values(instruction, session)
        metrics = train(session, self._config, Hooks(masks=_masks(session, learned)))
        names = [name for name in instruction.facts["expects"] if not name.endswith(BASE)]
        local = _own_part(session.read(names), learned)
        update = {name: local[name] - instruction[name] for name in names}
        metrics |= {"update_norm": norm(update), **_largest_rank(instruction)}
        dtype = UPLOAD_DTYPES[self._config.upload_dtype]
        sent = Payload({name: value.to(dtype) for name, value in update.items()} | base)
        return ClientResult(sent, float(session.examples), metrics)


# Of each factor's name: along which dimension its ranks lie, and how many of them were learned before.
Learned = Mapping[str, tuple[int, int]]


def _receive(instruction: Payload, session: TrainingSession) -> Learned:
    """Put the received values into the session. Ranks learned before come first, and stand beside the client's."""
    learned: dict[str, tuple[int, int]] = {}
    ranks: dict[str, int] = {}
    values = {name.removesuffix(FROZEN): instruction[name] for name in instruction if not name.endswith(LEARNED)}
    scales: Mapping[str, float] = instruction.facts["scales"]
    for module, (a, b) in instruction.facts["factors"].items():
        if a + LEARNED in instruction:
            before = instruction[a + LEARNED]
            learned |= {a: (0, len(before)), b: (1, len(before))}
            values[a] = torch.cat([before, values[a]])
            values[b] = torch.cat([instruction[b + LEARNED] / scales[module], values[b]], dim=1)
        ranks[module] = len(values[a])
    session.resize(ranks, scales)
    session.load(values)
    return learned


def _masks(session: TrainingSession, learned: Learned) -> dict[str, Tensor]:
    masks = {}
    for name, (dimension, count) in learned.items():
        masks[name] = torch.ones(session.trainables[name].shape, dtype=torch.bool)
        masks[name].narrow(dimension, 0, count).fill_(False)
    return masks


def _own_part(local: Mapping[str, Tensor], learned: Learned) -> dict[str, Tensor]:
    own = dict(local)
    for name, (dimension, count) in learned.items():
        own[name] = local[name].narrow(dimension, count, local[name].shape[dimension] - count)
    return own


def _largest_rank(instruction: Payload) -> dict[str, float]:
    """Rank and scale of the matrix that the client trains at its highest rank, for the record."""
    ranks = {module: instruction.shape(a)[0] for module, (a, _) in instruction.facts["factors"].items()}
    module = max(ranks, key=lambda name: (ranks[name], name))
    return {"rank": float(ranks[module]), "scale": instruction.facts["scales"][module]}
