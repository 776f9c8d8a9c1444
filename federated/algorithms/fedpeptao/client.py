"""The worker's half of FedPepTAO: measure the layers once, then train all prompts and send those that travel.

Memory: the prompts of the layers that stay here, under the names of the layers, and with `moments: persist` the
local optimiser's state; its facts say which federation's they are.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from federated.algorithm_kit.local_training import Hooks, shuffled, train
from federated.algorithm_kit.shared_tensors import FROZEN, norm
from federated.algorithms.fedpeptao.config import FedPepTAOConfig
from federated.algorithms.fedpeptao.layer_scoring import layer_scores, shares_of_prompts
from federated.algorithms.fedpeptao.prompt_layers import LAYER_SCORES, SHARES, joined, slice_name, slices
from federated.contract import AnyTrainable, ClientResult, View
from federated.payloads.payload import Payload
from federated.session import TrainingSession
from federated.trainable import PROMPT_EMBEDDINGS

_MOMENTS = "moments/"


class FedPepTAOClient:
    """Update = local value - received value of the travelling layers and the head; other layers stay in memory."""

    def __init__(self, config: FedPepTAOConfig, trainable: AnyTrainable) -> None:
        self._config = config

    def apply(self, instruction: Payload, session: TrainingSession, memory: Payload | None, view: View) -> None:
        """The received values; the other layers at their common start, or in the own view as this client has them."""
        self._receive(instruction, session, memory if view == "own" else None)

    def run(self, instruction: Payload, session: TrainingSession, memory: Payload | None) -> ClientResult:
        """Measure or train, as the instruction's stage says. Who missed the measuring just trains."""
        if instruction.facts["stage"] == "measure":
            return self._measured(instruction, session)
        self._receive(instruction, session, memory)
        session.train_all_except(instruction.facts["frozen"])
        moments = self._moments(instruction, session, memory)
        metrics = train(session, self._config, Hooks(moments=moments))
        local = session.read()
        local |= slices(local.pop(PROMPT_EMBEDDINGS), session.facts.layers)
        update = {name: local[name] - instruction[name] for name in instruction.facts["expects"]}
        metrics["update_norm"] = norm(update)
        kept = {_MOMENTS + name: value for name, value in (moments or {}).items()}
        if self._config.other_layers == "local":
            kept |= {name: local[name] for name in _private(instruction, session)}
        remembered = Payload(kept, _belonging(instruction, session)) if kept else None
        return ClientResult(Payload(update), float(session.examples), metrics, remembered)

    def _receive(self, instruction: Payload, session: TrainingSession, memory: Payload | None) -> None:
        session.load(_received(instruction, session, memory))
        if self._config.other_layers == "masked":
            travelling = instruction.facts["travelling"]
            session.leave_out_prompts([n for n in range(session.facts.layers) if n not in travelling])

    def _moments(
        self, instruction: Payload, session: TrainingSession, memory: Payload | None
    ) -> dict[str, Tensor] | None:
        if self._config.moments == "reset":
            return None
        kept = _remembered(instruction, session, memory)
        return {name.removeprefix(_MOMENTS): kept[name] for name in kept if name.startswith(_MOMENTS)}

    def _measured(self, instruction: Payload, session: TrainingSession) -> ClientResult:
        order = shuffled(session.seed, 0, session.examples)[: self._config.score_examples]
        batch = next(session.batches(order, len(order)))
        tensors = {LAYER_SCORES: layer_scores(session, batch)}
        if SHARES in instruction.facts["expects"]:
            tensors[SHARES] = shares_of_prompts(session, batch, _received(instruction, session, None))
        metrics = {"examples_scored": float(batch.examples)}
        update = Payload({name: torch.tensor(told, dtype=torch.float32) for name, told in tensors.items()})
        return ClientResult(update, float(session.examples), metrics, is_measurement=True)


def _received(instruction: Payload, session: TrainingSession, memory: Payload | None) -> dict[str, Tensor]:
    """What the model is to hold, the prompts as one matrix again."""
    values = {name: session.start(name) for name in instruction.facts["frozen"]}
    prompts = slices(session.start(PROMPT_EMBEDDINGS), session.facts.layers)
    given = {name.removesuffix(FROZEN): instruction[name] for name in instruction}
    own = _remembered(instruction, session, memory)
    for name, value in {**given, **own}.items():
        if not name.startswith(_MOMENTS):
            (prompts if name in prompts else values)[name] = value
    return values | {PROMPT_EMBEDDINGS: joined(prompts, session.facts.layers)}


def _private(instruction: Payload, session: TrainingSession) -> list[str]:
    return [slice_name(n) for n in range(session.facts.layers) if n not in instruction.facts["travelling"]]


def _belonging(instruction: Payload, session: TrainingSession) -> dict[str, object]:
    """Facts that a memory must have to be of use here."""
    return {
        "federation_seed": session.federation_seed,
        "travelling": instruction.facts["travelling"],
        "prompts": list(session.trainables[PROMPT_EMBEDDINGS].shape),
    }


def _remembered(instruction: Payload, session: TrainingSession, memory: Payload | None) -> Mapping[str, Tensor]:
    """What stayed here, or nothing if the memory is lost or of another federation."""
    if memory is None or dict(memory.facts) != _belonging(instruction, session):
        return {}
    return {name: memory[name] for name in memory}
