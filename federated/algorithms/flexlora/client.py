"""Client half of FlexLoRA: resizes the adapter to the instruction's ranks, trains, and sends the difference."""

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
    """Update = local value - received value of every trained tensor, at the client's own ranks. Keeps no memory."""

    def __init__(self, config: FlexLoRAConfig, trainable: AnyTrainable) -> None:
        self._config = config

    def apply(self, instruction: Payload, session: TrainingSession, memory: Payload | None, view: View) -> None:
        """Load the received values at their rank and scale. The views shared and own are the same."""
        _receive(instruction, session)

    def run(self, instruction: Payload, session: TrainingSession, memory: Payload | None) -> ClientResult:
        """Train on all examples. Ranks learned in earlier rounds (stack) keep their bits."""
        learned_ranks = _receive(instruction, session)
        base = base_values(instruction, session)
        metrics = train(session, self._config, Hooks(masks=_masks(session, learned_ranks)))
        names = [name for name in instruction.facts["expects"] if not name.endswith(BASE)]
        local = _own_part(session.read(names), learned_ranks)
        update = {name: local[name] - instruction[name] for name in names}
        metrics |= {"update_norm": norm(update), **_largest_rank(instruction)}
        dtype = UPLOAD_DTYPES[self._config.upload_dtype]
        payload = Payload({name: value.to(dtype) for name, value in update.items()} | base)
        return ClientResult(payload, float(session.examples), metrics)


# By name of the factor: the dimension of its ranks, and the number of ranks learned in earlier rounds.
LearnedRanks = Mapping[str, tuple[int, int]]


def _receive(instruction: Payload, session: TrainingSession) -> LearnedRanks:
    """Load the received values. Ranks learned in earlier rounds come before the client's own."""
    learned_ranks: dict[str, tuple[int, int]] = {}
    ranks: dict[str, int] = {}
    values = {name.removesuffix(FROZEN): instruction[name] for name in instruction if not name.endswith(LEARNED)}
    scales: Mapping[str, float] = instruction.facts["scales"]
    for module, (a, b) in instruction.facts["factors"].items():
        if a + LEARNED in instruction:
            before = instruction[a + LEARNED]
            learned_ranks |= {a: (0, len(before)), b: (1, len(before))}
            values[a] = torch.cat([before, values[a]])
            values[b] = torch.cat([instruction[b + LEARNED] / scales[module], values[b]], dim=1)
        ranks[module] = len(values[a])
    session.resize(ranks, scales)
    session.load(values)
    return learned_ranks


def _masks(session: TrainingSession, learned_ranks: LearnedRanks) -> dict[str, Tensor]:
    masks = {}
    for name, (dimension, count) in learned_ranks.items():
        masks[name] = torch.ones(session.trainables[name].shape, dtype=torch.bool)
        masks[name].narrow(dimension, 0, count).fill_(False)
    return masks


def _own_part(local: Mapping[str, Tensor], learned_ranks: LearnedRanks) -> dict[str, Tensor]:
    own = dict(local)
    for name, (dimension, count) in learned_ranks.items():
        own[name] = local[name].narrow(dimension, count, local[name].shape[dimension] - count)
    return own


def _largest_rank(instruction: Payload) -> dict[str, float]:
    """Metrics `rank` and `scale`, of the matrix that the client trains at its highest rank."""
    ranks = {module: instruction.shape(a)[0] for module, (a, _) in instruction.facts["factors"].items()}
    module = max(ranks, key=lambda name: (ranks[name], name))
    return {"rank": float(ranks[module]), "scale": instruction.facts["scales"][module]}
