"""The worker's half of FibecFed: score once; then train what travels and a sparse private part on easy examples."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from federated.algorithm_kit.local_training import Hooks, train
from federated.algorithm_kit.model_layers import layers_of
from federated.algorithm_kit.shared_tensors import BASE, FROZEN, UPLOAD_DTYPES, base_values, norm
from federated.algorithms.fibecfed.client_memory import Remembered
from federated.algorithms.fibecfed.config import FibecFedConfig
from federated.algorithms.fibecfed.curriculum import admitted_examples, easy_first, order_of_epoch
from federated.algorithms.fibecfed.fisher import difficulty
from federated.algorithms.fibecfed.layer_choice import shares_after_warm_up, warm_up
from federated.algorithms.fibecfed.layer_scores import layer_scores
from federated.algorithms.fibecfed.layers import layer_tensors
from federated.algorithms.fibecfed.sparsity import chosen_rows, update_masks
from federated.contract import AnyTrainable, ClientResult, View
from federated.payloads.payload import Payload
from federated.session import TrainingSession


class FibecFedClient:
    """Update = local value - received value of what travels; all that is private stays in the memory."""

    def __init__(self, config: FibecFedConfig, trainable: AnyTrainable) -> None:
        self._config = config

    def apply(self, instruction: Payload, session: TrainingSession, memory: Payload | None, view: View) -> None:
        """The received values; private layers at their start (shared) or as this client trained them (own)."""
        told = _Told(instruction, session)
        session.load(told.starts() | told.received())
        if view == "own":
            session.load(Remembered.of(memory, session, told.private, told.travelling).private)

    def run(self, instruction: Payload, session: TrainingSession, memory: Payload | None) -> ClientResult:
        """Score examples and layers, or train; a client without its scores makes them first and sends none."""
        told = _Told(instruction, session)
        if told.travelling is None:
            return self._prepare(told)
        return self._train(told, Remembered.of(memory, session, told.private, told.travelling))

    def _prepare(self, told: "_Told") -> ClientResult:
        """Layer scores, and the share of layers to keep where it is asked for; difficulties stay here."""
        session, layers = told.session, sorted(told.layered)
        layers_of(session, layers)
        session.load(told.starts() | told.received())
        told.freeze(())
        shares: dict[str, float] = {}
        with _undone(session):
            made = self._scores(told) if self._config.score_at == "start" else None
            if self._config.layer_count != "fixed":
                shares = shares_after_warm_up(session, self._config, told.factors)
            elif made is None:
                warm_up(session, self._config)
            scores, hard = made or self._scores(told)
        sent = {"layer_scores": scores}
        if shares:
            sent["kept_share"] = torch.tensor([shares[self._config.layer_count]])
        metrics = {f"kept_{way}": share for way, share in shares.items()}
        memory = Remembered(hard).payload(session, None)
        return ClientResult(Payload(sent), float(session.examples), metrics, memory, is_measurement=True)

    def _scores(self, told: "_Told") -> tuple[Tensor, Tensor | None]:
        scores = layer_scores(told.session, self._config, sorted(told.layered))
        hard = difficulty(told.session, self._config, told.layered) if self._sorts else None
        told.freeze(())
        return scores, hard

    def _train(self, told: "_Told", remembered: Remembered) -> ClientResult:
        session, instruction = told.session, told.instruction
        base = base_values(instruction, session)
        session.load(told.starts())
        hard = remembered.difficulty
        if self._sorts and hard is None:
            hard = self._late_difficulty(told)
        session.load({**told.received(), **remembered.private})
        rows = remembered.rows or self._rows(told)
        told.freeze([name for name, chosen in rows.items() if not chosen.any()])
        admitted, hooks = self._admitted(told, hard)
        metrics = train(session, self._config, Hooks(hooks.order, update_masks(session, rows)))
        names = [name for name in instruction.facts["expects"] if not name.endswith(BASE)]
        local = session.read([*names, *told.private])
        update = {name: local[name] - instruction[name] for name in names}
        metrics |= {"update_norm": norm(update), "admitted_share": admitted / session.examples}
        dtype = UPLOAD_DTYPES[self._config.upload_dtype]
        sent = Payload({name: value.to(dtype) for name, value in update.items()} | base)
        private = {name: local[name] for name in told.private}
        memory = Remembered(hard, rows, private).payload(session, told.travelling)
        return ClientResult(sent, float(session.examples), metrics, memory)

    @property
    def _sorts(self) -> bool:
        return self._config.pacing != "none" or self._config.ordered

    def _late_difficulty(self, told: "_Told") -> Tensor:
        """As in the preparation that this client missed or forgot, at the start of the federation."""
        with _undone(told.session):
            if self._config.score_at == "after_warmup":
                told.freeze(())
                warm_up(told.session, self._config)
            return difficulty(told.session, self._config, told.layered)

    def _rows(self, told: "_Told") -> dict[str, Tensor]:
        with _undone(told.session):
            told.freeze(())
            return chosen_rows(told.session, self._config, told.private)

    def _admitted(self, told: "_Told", hard: Tensor | None) -> tuple[int, Hooks]:
        session = told.session
        if not self._sorts or hard is None:
            return session.examples, Hooks()
        number, rounds = told.instruction.facts["round"], told.instruction.facts["rounds"]
        count = admitted_examples(self._config, session.examples, number, rounds)
        order = order_of_epoch(easy_first(hard)[:count], session.examples, session.seed, ordered=self._config.ordered)
        return count, Hooks(order)


class _Told:
    """An instruction as this session's model reads it. `travelling` is None before the layers are chosen."""

    def __init__(self, instruction: Payload, session: TrainingSession) -> None:
        self.instruction = instruction
        self.session = session
        self.layered = layer_tensors(session.facts)
        self.travelling: Sequence[int] | None = instruction.facts["layers"]
        self.factors = sorted(name for names in self.layered.values() for name in names)
        chosen = set(self.layered if self.travelling is None else self.travelling)
        self.private = sorted(name for layer, names in self.layered.items() if layer not in chosen for name in names)

    def starts(self) -> dict[str, Tensor]:
        """Every factor at the federation's start, or at the initial adapter's value where that is told."""
        return {name: self.session.start(name) for name in self.factors} | self._given()

    def received(self) -> dict[str, Tensor]:
        """What travels, and what an initial adapter says of the rest."""
        values = {name: self.instruction[name] for name in self.instruction if "/" not in name}
        return values | self._given()

    def freeze(self, private: Sequence[str]) -> None:
        """Train what the federation trains but for these private factors."""
        self.session.train_all_except([*self.instruction.facts["frozen"], *private])

    def _given(self) -> dict[str, Tensor]:
        return {
            name.removesuffix(FROZEN): self.instruction[name] for name in self.instruction if name.endswith(FROZEN)
        }


@contextmanager
def _undone(session: TrainingSession) -> Iterator[None]:
    """What the block does to the trainables and to the global generators is taken back, and used nothing."""
    used = frozenset(session.used)
    before = {name: value.detach().clone() for name, value in session.trainables.items()}
    with torch.random.fork_rng([session.device] if session.device.type == "cuda" else []):
        yield
    for name, value in before.items():
        with torch.no_grad():
            session.trainables[name].copy_(value)
        session.trainables[name].grad = None
    session.used.intersection_update(used)
