"""The coordinator's half of FlexLoRA.

State, float32: of each adapted matrix the learned W as factors under their canonical names: A (R, in) with
orthonormal rows, and B (out, R) with the singular values in its columns, at scale 1 (zero-padding: the padded means;
stacking: as many ranks as were learned so far). Beside them every other trained tensor, plainly averaged, `NAME/base`
and `NAME/frozen` (see `federated.algorithm_kit.shared_tensors`). Facts: `seed`, `seeded`, `differences`, `matrices`.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from federated.algorithm_kit.shared_tensors import (
    FROZEN,
    UPLOAD_DTYPES,
    absolute,
    averaged,
    checked_initial,
    differences,
    expected_bases,
    told_bases,
    training_metrics,
    untrained_values,
)
from federated.algorithm_kit.update_schema import expects_like, refuse_unexpected
from federated.algorithms.flexlora.aggregations import Pair, Trained, products, zero_padded
from federated.algorithms.flexlora.config import FlexLoRAConfig
from federated.algorithms.flexlora.initialization import lazy_factors, padding_key, untrained
from federated.algorithms.flexlora.lora_matrices import LEARNED, Matrix, matrices_of, stored_matrices
from federated.algorithms.flexlora.rank_memory import highest_notes, rank_notes
from federated.algorithms.flexlora.ranks import allowed_ranks, client_ranks
from federated.algorithms.flexlora.spectral_energy import Energies, RoundMetrics, joined, summed
from federated.contract import (
    Adapter,
    AnyTrainable,
    ClientFacts,
    ClientUpdate,
    FederationRefused,
    Outcome,
    RoundFacts,
)
from federated.maths.averaging import RecentResults
from federated.maths.initialization import start
from federated.maths.low_rank import Search, complete, squared_norm, stack, truncate
from federated.patterns import by_module_name
from federated.payloads.payload import LazyTensor, Payload
from federated.trainable import Lora, ModelFacts


class FlexLoRAServer:
    """W = the clients' products joined; a client of rank r gets W's leading r components, split anew."""

    def __init__(self, config: FlexLoRAConfig, trainable: AnyTrainable) -> None:
        if not isinstance(trainable, Lora):
            raise TypeError(f"flexlora trains LoRA factors, not {trainable.kind!r}")
        self._config = config
        self._trainable = trainable

    def start(self, model: ModelFacts, seed: int, initial: Payload | None) -> Payload:
        """W = 0 or the product of the initial adapter's factors; all else at its seeded start or as given.

        Raises ValueError naming what does not fit.
        """
        matrices = matrices_of(model)
        scales = {matrix.module: self._scale(matrix, matrix.rank) for matrix in matrices}
        given = checked_initial(model, initial, scales.__getitem__)
        factors = {name for matrix in matrices for name in (matrix.a, matrix.b)}
        tensors: dict[str, Tensor | LazyTensor] = {}
        for matrix in matrices:
            tensors |= self._first_factors(matrix, given, seed)
        for tensor in model.tensors:
            if tensor.name not in factors:
                made = LazyTensor(torch.float32, tensor.shape, partial(start, seed, tensor))
                tensors[tensor.name] = given[tensor.name].float() if tensor.name in given else made
        tensors |= {one.name + FROZEN: given[one.name].float() for one in model.seeded if one.name in given}
        facts = {
            "seed": seed,
            "seeded": [one.model_dump(mode="json") for one in model.seeded if one.name not in given],
            "differences": differences(model),
            "matrices": [matrix.as_facts() for matrix in matrices],
        }
        return Payload(tensors, facts)

    def plan(self, state: Payload, clients: Sequence[ClientFacts], step: RoundFacts) -> Mapping[int, Payload]:
        """The leading components of W at each client's ranks; one instruction for all clients of equal ranks.

        Evaluated is what users download, at the most ranks that a client's node allows.
        """
        matrices = stored_matrices(state.facts)
        told: dict[tuple[int, ...], Payload] = {}
        instructions = {}
        for client in clients:
            ranks = self._ranks(state.facts["seed"], client, matrices, step)
            if ranks not in told:
                told[ranks] = self._instruction(state, matrices, ranks, step)
            instructions[client.ordinal] = told[ranks]
        return instructions

    def check(self, instruction: Payload, update: Payload) -> None:
        """Names, dtypes and shapes, so ranks too, must be those of the instruction. Raises UpdateRefused."""
        refuse_unexpected(instruction, update)

    def aggregate(self, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        """Matrix by matrix over all clients, when the next state is written or read."""
        ordered = sorted(updates, key=lambda update: update.ordinal)
        matrices = {matrix.module: matrix for matrix in stored_matrices(state.facts) if matrix.a in state}
        energies: Energies = {}
        made = RecentResults(lambda module: self._joined(state, matrices[module], ordered, energies, step))
        tensors: dict[str, Tensor | LazyTensor] = {name: state.lazy(name) for name in state if "/" in name}
        for matrix in matrices.values():
            rank = self._next_rank(state, matrix, ordered)
            tensors |= lazy_factors(matrix, rank, partial(made, matrix.module))
        for name in _averaged_names(state, list(matrices.values())):
            make = partial(averaged, state, name, ordered)
            tensors[name] = LazyTensor(torch.float32, state.shape(name), make)
        told = training_metrics(ordered) | _rank_range(list(matrices.values()), ordered)
        metrics = RoundMetrics(told, energies, {module: partial(made, module) for module in matrices})
        notes = rank_notes(ordered, list(matrices.values())) if self._config.rank == "auto" else {}
        return Outcome(Payload({**tensors, **told_bases(ordered)}, state.facts), metrics, notes=notes)

    def join(self, state: Payload, parts: Sequence[Outcome], step: RoundFacts) -> Outcome:
        """The shards' tensors side by side; a matrix's two factors lie in one shard."""
        tensors: dict[str, LazyTensor] = {}
        for part in parts:
            tensors |= {name: part.state.lazy(name) for name in part.state}
        return Outcome(
            Payload(tensors, state.facts),
            joined([part.metrics for part in parts]),
            notes=highest_notes([part.notes for part in parts]),
        )

    def export(self, state: Payload) -> Adapter:
        """The leading `export_rank` components of W at their scale, and every other tensor; opens in PEFT.

        Raises ValueError before the first round if a tensor travels as a difference.
        """
        tensors: dict[str, Tensor] = {}
        energies: Energies = {}
        matrices = stored_matrices(state.facts)
        for matrix in matrices:
            b, a = self._leading(state, matrix, self._export_rank(matrix), energies)
            tensors |= {matrix.a: a, matrix.b: b / self._scale(matrix, len(a))}
        for name in _averaged_names(state, matrices):
            tensors[name] = absolute(state, name, state.facts["differences"])
        tensors |= untrained_values(state)
        most = self._config.export_rank or self._trainable.largest_rank
        ranks = by_module_name(self._trainable.rank_pattern, [matrix.module for matrix in matrices])
        fields = {
            "r": min(self._trainable.r, most),
            "rank_pattern": {name: min(rank, most) for name, rank in ranks.items()},
            "use_rslora": self._config.scaling == "rslora",
        }
        return Adapter("peft", tensors, fields, summed(list(energies.values())))

    def _ranks(self, seed: int, client: ClientFacts, matrices: Sequence[Matrix], step: RoundFacts) -> tuple[int, ...]:
        if step.kind == "evaluate":
            return allowed_ranks([self._export_rank(matrix) for matrix in matrices], client, matrices)
        return client_ranks(self._config.rank, self._config.auto_memory_share, seed, client, matrices)

    def _scale(self, matrix: Matrix, rank: int) -> float:
        return matrix.scale(rank, self._trainable, self._config.scaling)

    def _export_rank(self, matrix: Matrix) -> int:
        return min(self._config.export_rank or matrix.rank, matrix.rank)

    def _next_rank(self, state: Payload, matrix: Matrix, updates: Sequence[ClientUpdate]) -> int:
        """How many ranks of W are kept: the trainable's; of a stack all, up to `base_rank`."""
        if self._config.aggregation != "stack":
            return matrix.rank
        width = state.shape(matrix.a)[0] + sum(update.payload.shape(matrix.a)[0] for update in updates)
        return min(width, matrix.inputs, matrix.outputs, self._config.base_rank or width)

    def _first_factors(
        self, matrix: Matrix, given: Mapping[str, Tensor], seed: int
    ) -> dict[str, Tensor | LazyTensor]:
        if (matrix.a in given) != (matrix.b in given):
            raise FederationRefused(f"initial adapter: {matrix.module} has one factor of two")
        if matrix.a not in given:
            rank = 0 if self._config.aggregation == "stack" else matrix.rank
            return lazy_factors(matrix, rank, partial(untrained, matrix, rank, padding_key(seed, matrix)))
        b, a = given[matrix.b].float() * self._scale(matrix, matrix.rank), given[matrix.a].float()
        if self._config.aggregation != "zero_pad":
            made = truncate(b, a, matrix.rank, padding_key(seed, matrix))
            b, a = made.b, made.a
        return {matrix.a: a, matrix.b: b}

    def _instruction(
        self, state: Payload, matrices: Sequence[Matrix], ranks: Sequence[int], step: RoundFacts
    ) -> Payload:
        at = {matrix.module: (matrix, rank) for matrix, rank in zip(matrices, ranks, strict=True)}
        received = RecentResults(lambda module: self._received(state, *at[module], step), keep=1)
        tensors: dict[str, Tensor | LazyTensor] = {}
        for matrix, rank in at.values():
            tensors |= lazy_factors(matrix, rank, partial(received, matrix.module))
        tensors |= {name: state.lazy(name) for name in _averaged_names(state, matrices)}
        dtype = UPLOAD_DTYPES[self._config.upload_dtype]
        expects = expects_like(Payload(tensors), dtype) | expected_bases(state, state.facts["differences"])
        tensors |= {name: state.lazy(name) for name in state if name.endswith(FROZEN)}
        if self._config.aggregation == "stack" and step.kind != "evaluate":
            factors = [name for matrix in matrices for name in (matrix.a, matrix.b)]
            tensors |= {name + LEARNED: state.lazy(name) for name in factors}
        scales = {module: self._scale(matrix, rank) for module, (matrix, rank) in at.items()}
        named = {module: [matrix.a, matrix.b] for module, (matrix, _) in at.items()}
        return Payload(tensors, {"expects": expects, "scales": scales, "factors": named})

    def _received(self, state: Payload, matrix: Matrix, rank: int, step: RoundFacts) -> Pair:
        """What a client of this rank starts from, as (B, A)."""
        if step.kind == "evaluate":
            b, a = self._leading(state, matrix, rank, {})
        elif self._config.aggregation == "stack":
            b, a = untrained(matrix, rank, padding_key(state.facts["seed"], matrix, step.number))
        else:
            b, a = state[matrix.b][:, :rank], state[matrix.a][:rank]
        return b / self._scale(matrix, rank), a.clone()

    def _leading(self, state: Payload, matrix: Matrix, rank: int, energies: Energies) -> Pair:
        """The best factors of W at a rank, as (B, A), B at scale 1."""
        b, a, key = state[matrix.b], state[matrix.a], padding_key(state.facts["seed"], matrix)
        if self._config.aggregation == "zero_pad":
            if rank == len(a):
                return b, a
            made = truncate(b, a, rank, key)
            energies[matrix.module] = made.energy, made.total_energy
            return made.b, made.a
        kept = torch.zeros(matrix.outputs, rank)
        kept[:, : len(a)] = b[:, :rank]
        # The rows of A are orthonormal: the norm of B is that of the product.
        energies[matrix.module] = _squared(kept), _squared(b)
        return kept, complete(a[:rank], rank, key)

    def _joined(
        self, state: Payload, matrix: Matrix, updates: Sequence[ClientUpdate], energies: Energies, step: RoundFacts
    ) -> Pair:
        """The next W as (B, A)."""
        w = state[matrix.b], state[matrix.a]
        total = math.fsum(update.weight for update in updates)
        clients = [self._trained(state, matrix, update, update.weight / total, step) for update in updates]
        if self._config.aggregation == "zero_pad":
            b, a = zero_padded(w, clients)
            energies[matrix.module] = squared_norm(b, a), squared_norm(b, a)
            return b, a
        b, a = stack(products(self._config.aggregation, w, clients))
        search = Search(self._config.oversampling, self._config.power_iterations)
        key = padding_key(state.facts["seed"], matrix)
        try:
            made = truncate(b, a, self._next_rank(state, matrix, updates), key, like=w[1], search=search)
        except ValueError as error:
            raise FederationRefused(f"{matrix.module}: {error}") from error
        energies[matrix.module] = made.energy, made.total_energy
        return made.b, made.a

    def _trained(
        self, state: Payload, matrix: Matrix, update: ClientUpdate, share: float, step: RoundFacts
    ) -> Trained:
        change_of_a, change_of_b = update.payload[matrix.a].float(), update.payload[matrix.b].float()
        rank = len(change_of_a)
        b, a = self._received(state, matrix, rank, step)
        scale = self._scale(matrix, rank)
        return Trained(share, scale, a + change_of_a, b + change_of_b, change_of_a, change_of_b)


def _averaged_names(state: Payload, matrices: Sequence[Matrix]) -> list[str]:
    factors = {name for matrix in matrices for name in (matrix.a, matrix.b)}
    return [name for name in state if "/" not in name and name not in factors]


def _rank_range(matrices: Sequence[Matrix], updates: Sequence[ClientUpdate]) -> dict[str, float]:
    ranks = [update.payload.shape(matrix.a)[0] for matrix in matrices for update in updates]
    return {"rank_min": float(min(ranks)), "rank_max": float(max(ranks))} if ranks else {}


def _squared(b: Tensor) -> float:
    return float(b.double().square().sum())
