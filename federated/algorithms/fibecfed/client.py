"""Client half of FibecFed: scores examples and layers once, then trains shared and private parts on easy examples."""

from collections.abc import Sequence

import torch
from torch import Tensor

from federated.algorithm_kit.local_training import Hooks, train
from federated.algorithm_kit.model_layers import layers_of
from federated.algorithm_kit.shared_tensors import BASE, FROZEN, UPLOAD_DTYPES, base_values, norm
from federated.algorithms.fibecfed.client_memory import ClientMemory
from federated.algorithms.fibecfed.config import FibecFedConfig
from federated.algorithms.fibecfed.curriculum import curriculum_order, easy_first, examples_to_admit
from federated.algorithms.fibecfed.fisher import difficulty
from federated.algorithms.fibecfed.layer_choice import shares_after_warm_up, warm_up
from federated.algorithms.fibecfed.layer_scores import layer_scores
from federated.algorithms.fibecfed.layers import layer_tensors
from federated.algorithms.fibecfed.restoration import temporary_changes
from federated.algorithms.fibecfed.sparsity import choose_rows, update_masks
from federated.contract import AnyTrainable, ClientResult, View
from federated.payloads.payload import Payload
from federated.session import TrainingSession


class FibecFedClient:
    """Update = local value - received value of the tensors that travel. Private values stay in the memory."""

    def __init__(self, config: FibecFedConfig, trainable: AnyTrainable) -> None:
        self._config = config

    def apply(self, instruction: Payload, session: TrainingSession, memory: Payload | None, view: View) -> None:
        """Load the received values. Private layers have their start (shared) or this client's values (own)."""
        session_instruction = _Instruction(instruction, session)
        session_instruction.load()
        if view == "own":
            session.load(session_instruction.memory_of(memory).private)

    def run(self, instruction: Payload, session: TrainingSession, memory: Payload | None) -> ClientResult:
        """Score examples and layers, or train. A client without difficulties computes them before it trains."""
        session_instruction = _Instruction(instruction, session)
        if session_instruction.shared_layers is None:
            return self._prepare(session_instruction)
        return self._train(session_instruction, session_instruction.memory_of(memory))

    def _prepare(self, instruction: "_Instruction") -> ClientResult:
        """Send the layer scores, and the estimated share of layers if requested. Difficulties stay here."""
        session, layers = instruction.session, sorted(instruction.factors_by_layer)
        layers_of(session, layers)
        instruction.load()
        instruction.train_all_except(())
        shares: dict[str, float] = {}
        with temporary_changes(session):
            scores_at_start = self._scores(instruction) if self._config.score_at == "start" else None
            if self._config.layer_count != "fixed":
                shares = shares_after_warm_up(session, self._config, instruction.factors)
            elif scores_at_start is None:
                warm_up(session, self._config)
            scores, difficulties = scores_at_start or self._scores(instruction)
        update_tensors = {"layer_scores": scores}
        if shares:
            update_tensors["kept_share"] = torch.tensor([shares[self._config.layer_count]])
        metrics = {f"kept_{estimator}": share for estimator, share in shares.items()}
        memory = ClientMemory(difficulties).payload(session, None)
        return ClientResult(Payload(update_tensors), float(session.examples), metrics, memory, is_measurement=True)

    def _scores(self, instruction: "_Instruction") -> tuple[Tensor, Tensor | None]:
        scores = layer_scores(instruction.session, self._config, sorted(instruction.factors_by_layer))
        difficulties = (
            difficulty(instruction.session, self._config, instruction.factors_by_layer) if self._sorts else None
        )
        instruction.train_all_except(())
        return scores, difficulties

    def _train(self, instruction: "_Instruction", old_memory: ClientMemory) -> ClientResult:
        session, payload = instruction.session, instruction.payload
        base = base_values(payload, session)
        session.load(instruction.starts())
        difficulties = old_memory.difficulty
        if self._sorts and difficulties is None:
            difficulties = self._late_difficulty(instruction)
        session.load({**instruction.received_values(), **old_memory.private})
        rows = old_memory.rows
        if not rows:
            instruction.train_all_except(())
            rows = choose_rows(session, self._config, instruction.private)
        instruction.train_all_except([name for name, mask in rows.items() if not mask.any()])
        count, hooks = self._curriculum(instruction, difficulties)
        metrics = train(session, self._config, Hooks(hooks.order, update_masks(session, rows)))
        names = [name for name in payload.facts["expects"] if not name.endswith(BASE)]
        local = session.read([*names, *instruction.private])
        update = {name: local[name] - payload[name] for name in names}
        metrics |= {"update_norm": norm(update), "admitted_share": count / session.examples}
        dtype = UPLOAD_DTYPES[self._config.upload_dtype]
        update_tensors = Payload({name: value.to(dtype) for name, value in update.items()} | base)
        private = {name: local[name] for name in instruction.private}
        memory = ClientMemory(difficulties, rows, private).payload(session, instruction.shared_layers)
        return ClientResult(update_tensors, float(session.examples), metrics, memory)

    @property
    def _sorts(self) -> bool:
        return self._config.pacing != "none" or self._config.ordered

    def _late_difficulty(self, instruction: "_Instruction") -> Tensor:
        """The difficulties that a preparation would have computed. The session must be at the federation's start."""
        with temporary_changes(instruction.session):
            if self._config.score_at == "after_warmup":
                instruction.train_all_except(())
                warm_up(instruction.session, self._config)
            return difficulty(instruction.session, self._config, instruction.factors_by_layer)

    def _curriculum(self, instruction: "_Instruction", difficulties: Tensor | None) -> tuple[int, Hooks]:
        session = instruction.session
        if not self._sorts or difficulties is None:
            return session.examples, Hooks()
        number, rounds = instruction.payload.facts["round"], instruction.payload.facts["rounds"]
        count = examples_to_admit(self._config, session.examples, number, rounds)
        order = curriculum_order(
            easy_first(difficulties)[:count], session.examples, session.seed, easy_to_hard=self._config.ordered
        )
        return count, Hooks(order)


class _Instruction:
    """An instruction, applied to this session's model. `shared_layers` is None before the layers are chosen."""

    def __init__(self, payload: Payload, session: TrainingSession) -> None:
        self.payload = payload
        self.session = session
        self.factors_by_layer = layer_tensors(session.facts)
        self.shared_layers: Sequence[int] | None = payload.facts["layers"]
        self.factors = sorted(name for names in self.factors_by_layer.values() for name in names)
        shared_layers = set(self.factors_by_layer if self.shared_layers is None else self.shared_layers)
        self.private = sorted(
            name for layer, names in self.factors_by_layer.items() if layer not in shared_layers for name in names
        )

    def load(self) -> None:
        """Put the start of every factor and the received values into the session."""
        self.session.load(self.starts() | self.received_values())

    def starts(self) -> dict[str, Tensor]:
        """Every factor at the federation's start, or at the initial adapter's value if the instruction has it."""
        return {name: self.session.start(name) for name in self.factors} | self._initial_values()

    def received_values(self) -> dict[str, Tensor]:
        """The tensors that travel, and the initial adapter's untrained ones."""
        values = {name: self.payload[name] for name in self.payload if "/" not in name}
        return values | self._initial_values()

    def memory_of(self, memory: Payload | None) -> ClientMemory:
        """The parts of a memory that fit this instruction."""
        return ClientMemory.of(memory, self.session, self.private, self.shared_layers)

    def train_all_except(self, private: Sequence[str]) -> None:
        """Train all tensors that the federation trains, except for these private factors."""
        self.session.train_all_except([*self.payload.facts["frozen"], *private])

    def _initial_values(self) -> dict[str, Tensor]:
        return {name.removesuffix(FROZEN): self.payload[name] for name in self.payload if name.endswith(FROZEN)}
