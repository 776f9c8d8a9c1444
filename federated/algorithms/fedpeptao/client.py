"""Client half of FedPepTAO: scores the layers once, then trains all prompts and sends those that travel.

Memory: the prompts of the private layers, under the names of the layers, and with `moments: persist` the state of the
local optimizer. Its facts identify the federation.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from federated.algorithm_kit.local_training import Hooks, epoch_order, train
from federated.algorithm_kit.shared_tensors import FROZEN, norm
from federated.algorithms.fedpeptao.config import FedPepTAOConfig
from federated.algorithms.fedpeptao.layer_scoring import layer_scores, shares_of_prompts
from federated.algorithms.fedpeptao.prompt_layers import LAYER_SCORES, SHARES, join_slices, slice_name, slices
from federated.contract import AnyTrainable, ClientResult, View
from federated.payloads.payload import Payload
from federated.session import TrainingSession
from federated.trainable import PROMPT_EMBEDDINGS

_MOMENTS = "moments/"


class FedPepTAOClient:
    """Update = local value - received value of the shared layers and the head. Other layers stay in memory."""

    def __init__(self, config: FedPepTAOConfig, trainable: AnyTrainable) -> None:
        self._config = config

    def apply(self, instruction: Payload, session: TrainingSession, memory: Payload | None, view: View) -> None:
        """Load the received values. Other layers have their common start, or in the own view this client's values."""
        self._receive(instruction, session, memory if view == "own" else None)

    def run(self, instruction: Payload, session: TrainingSession, memory: Payload | None) -> ClientResult:
        """Measure or train, by the instruction's stage. A client that missed the measurement just trains."""
        if instruction.facts["stage"] == "measure":
            return self._measure(instruction, session)
        self._receive(instruction, session, memory)
        session.train_all_except(instruction.facts["frozen"])
        moments = self._moments(instruction, session, memory)
        metrics = train(session, self._config, Hooks(moments=moments))
        local = session.read()
        local |= slices(local.pop(PROMPT_EMBEDDINGS), session.facts.layers)
        update = {name: local[name] - instruction[name] for name in instruction.facts["expects"]}
        metrics["update_norm"] = norm(update)
        private = {_MOMENTS + name: value for name, value in (moments or {}).items()}
        if self._config.other_layers == "local":
            private |= {name: local[name] for name in _private_names(instruction, session)}
        next_memory = Payload(private, _memory_facts(instruction, session)) if private else None
        return ClientResult(Payload(update), float(session.examples), metrics, next_memory)

    def _receive(self, instruction: Payload, session: TrainingSession, memory: Payload | None) -> None:
        session.load(_session_values(instruction, session, memory))
        if self._config.other_layers == "masked":
            shared_layers = instruction.facts["travelling"]
            session.leave_out_prompts([n for n in range(session.facts.layers) if n not in shared_layers])

    def _moments(
        self, instruction: Payload, session: TrainingSession, memory: Payload | None
    ) -> dict[str, Tensor] | None:
        if self._config.moments == "reset":
            return None
        tensors = _memory_tensors(instruction, session, memory)
        return {name.removeprefix(_MOMENTS): tensors[name] for name in tensors if name.startswith(_MOMENTS)}

    def _measure(self, instruction: Payload, session: TrainingSession) -> ClientResult:
        order = epoch_order(session.seed, 0, session.examples)[: self._config.score_examples]
        batch = next(session.batches(order, len(order)))
        tensors = {LAYER_SCORES: layer_scores(session, batch)}
        if SHARES in instruction.facts["expects"]:
            tensors[SHARES] = shares_of_prompts(session, batch, _session_values(instruction, session, None))
        metrics = {"examples_scored": float(batch.examples)}
        update = Payload({name: torch.tensor(values, dtype=torch.float32) for name, values in tensors.items()})
        return ClientResult(update, float(session.examples), metrics, is_measurement=True)


def _session_values(instruction: Payload, session: TrainingSession, memory: Payload | None) -> dict[str, Tensor]:
    """Values for the session's trainables, with the prompts of all layers as one matrix."""
    values = {name: session.start(name) for name in instruction.facts["frozen"]}
    prompts = slices(session.start(PROMPT_EMBEDDINGS), session.facts.layers)
    instruction_values = {name.removesuffix(FROZEN): instruction[name] for name in instruction}
    own = _memory_tensors(instruction, session, memory)
    for name, value in {**instruction_values, **own}.items():
        if not name.startswith(_MOMENTS):
            (prompts if name in prompts else values)[name] = value
    return values | {PROMPT_EMBEDDINGS: join_slices(prompts, session.facts.layers)}


def _private_names(instruction: Payload, session: TrainingSession) -> list[str]:
    return [slice_name(n) for n in range(session.facts.layers) if n not in instruction.facts["travelling"]]


def _memory_facts(instruction: Payload, session: TrainingSession) -> dict[str, object]:
    """Facts of a memory. One with other facts is not used."""
    return {
        "federation_seed": session.federation_seed,
        "travelling": instruction.facts["travelling"],
        "prompts": list(session.trainables[PROMPT_EMBEDDINGS].shape),
    }


def _memory_tensors(instruction: Payload, session: TrainingSession, memory: Payload | None) -> Mapping[str, Tensor]:
    """The tensors of the memory, or none if it is lost or another federation's."""
    if memory is None or dict(memory.facts) != _memory_facts(instruction, session):
        return {}
    return {name: memory[name] for name in memory}
