"""Server half of FlexLoRA.

State, float32:
The learned W of each adapted matrix as factors under their canonical names, at scale 1: A (R, in) with orthonormal
rows, and B (out, R) with the singular values in its columns. With zero_pad they are the padded means, with stack they
have all ranks learned so far.
Every other trained tensor, plainly averaged.
`NAME/base` and `NAME/frozen`: see `federated.algorithm_kit.shared_tensors`.
Facts: `seed`, `seeded`, `differences`, `matrices`.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from federated.algorithm_kit.shared_tensors import (
    FROZEN,
    UPLOAD_DTYPES,
    add_weighted_mean,
    base_value_schema,
    difference_names,
    initial_tensors,
    reported_base_values,
    training_metrics,
    untrained_values,
    with_base,
)
from federated.algorithm_kit.update_schema import check_update, schema_like
from federated.algorithms.flexlora.aggregations import Pair, TrainedFactors, average_zero_padded, products
from federated.algorithms.flexlora.config import FlexLoRAConfig
from federated.algorithms.flexlora.initialization import initial_factors, lazy_factors, padding_key
from federated.algorithms.flexlora.lora_matrices import LEARNED, Matrix, matrices_of, stored_matrices
from federated.algorithms.flexlora.rank_memory import join_notes, rank_notes
from federated.algorithms.flexlora.ranks import allowed_ranks, client_ranks
from federated.algorithms.flexlora.spectral_energy import Energies, RoundMetrics, energy_metrics, join_metrics
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
    """W = the aggregate of the clients' products. A client of rank r gets the factors of W's leading r components."""

    def __init__(self, config: FlexLoRAConfig, trainable: AnyTrainable) -> None:
        if not isinstance(trainable, Lora):
            raise TypeError(f"flexlora trains LoRA factors, not {trainable.kind!r}")
        self._config = config
        self._trainable = trainable

    def start(self, model: ModelFacts, seed: int, initial: Payload | None) -> Payload:
        """W = 0 or the product of the initial adapter's factors, other tensors at its values or their seeded starts.

        Raises FederationRefused naming a tensor that does not fit.
        """
        matrices = matrices_of(model)
        scales = {matrix.module: self._scale(matrix, matrix.rank) for matrix in matrices}
        initial_values = initial_tensors(model, initial, scales.__getitem__)
        factors = {name for matrix in matrices for name in (matrix.a, matrix.b)}
        tensors: dict[str, Tensor | LazyTensor] = {}
        for matrix in matrices:
            tensors |= self._initial_pair(matrix, initial_values, seed)
        for tensor in model.tensors:
            if tensor.name not in factors:
                seeded_start = LazyTensor(torch.float32, tensor.shape, partial(start, seed, tensor))
                tensors[tensor.name] = (
                    initial_values[tensor.name].float() if tensor.name in initial_values else seeded_start
                )
        tensors |= {
            tensor.name + FROZEN: initial_values[tensor.name].float()
            for tensor in model.seeded
            if tensor.name in initial_values
        }
        facts = {
            "seed": seed,
            "seeded": [
                tensor.model_dump(mode="json") for tensor in model.seeded if tensor.name not in initial_values
            ],
            "differences": difference_names(model),
            "matrices": [matrix.as_facts() for matrix in matrices],
        }
        return Payload(tensors, facts)

    def plan(self, state: Payload, clients: Sequence[ClientFacts], step: RoundFacts) -> Mapping[int, Payload]:
        """The leading components of W at each client's ranks, in one instruction for all clients of equal ranks.

        An evaluation gets the adapter that users download, cut to the limit of the client's node.
        """
        matrices = stored_matrices(state.facts)
        by_ranks: dict[tuple[int, ...], Payload] = {}
        instructions = {}
        for client in clients:
            ranks = self._ranks(state.facts["seed"], client, matrices, step)
            if ranks not in by_ranks:
                by_ranks[ranks] = self._instruction(state, matrices, ranks, step)
            instructions[client.ordinal] = by_ranks[ranks]
        return instructions

    def check(self, instruction: Payload, update: Payload) -> None:
        """Names, dtypes and shapes, and so ranks, must match the instruction's schema. Raises UpdateRefused."""
        check_update(instruction, update)

    def aggregate(self, state: Payload, updates: Sequence[ClientUpdate], step: RoundFacts) -> Outcome:
        """Matrix by matrix over all clients, evaluated when the next state is written or read."""
        updates = sorted(updates, key=lambda update: update.ordinal)
        matrices = {matrix.module: matrix for matrix in stored_matrices(state.facts) if matrix.a in state}
        energies: Energies = {}
        pairs = RecentResults(lambda module: self._join_matrix(state, matrices[module], updates, energies, step))
        tensors: dict[str, Tensor | LazyTensor] = {name: state.lazy(name) for name in state if "/" in name}
        for matrix in matrices.values():
            rank = self._next_rank(state, matrix, updates)
            tensors |= lazy_factors(matrix, rank, partial(pairs, matrix.module))
        for name in _plain_names(state, list(matrices.values())):
            make = partial(add_weighted_mean, state, name, updates)
            tensors[name] = LazyTensor(torch.float32, state.shape(name), make)
        client_metrics = training_metrics(updates) | _rank_range(list(matrices.values()), updates)
        metrics = RoundMetrics(client_metrics, energies, {module: partial(pairs, module) for module in matrices})
        notes = rank_notes(updates, list(matrices.values())) if self._config.rank == "auto" else {}
        return Outcome(Payload({**tensors, **reported_base_values(updates)}, state.facts), metrics, notes=notes)

    def join(self, state: Payload, parts: Sequence[Outcome], step: RoundFacts) -> Outcome:
        """The tensors of all shards. A matrix's two factors are in one shard."""
        tensors: dict[str, LazyTensor] = {}
        for part in parts:
            tensors |= {name: part.state.lazy(name) for name in part.state}
        return Outcome(
            Payload(tensors, state.facts),
            join_metrics([part.metrics for part in parts]),
            notes=join_notes([part.notes for part in parts]),
        )

    def export(self, state: Payload) -> Adapter:
        """An adapter for PEFT: the leading `export_rank` components of W at their scale, and every other tensor.

        Raises FederationRefused before the first round if a tensor travels as a difference.
        """
        tensors: dict[str, Tensor] = {}
        energies: Energies = {}
        matrices = stored_matrices(state.facts)
        for matrix in matrices:
            b, a = self._leading(state, matrix, self._export_rank(matrix), energies)
            tensors |= {matrix.a: a, matrix.b: b / self._scale(matrix, len(a))}
        for name in _plain_names(state, matrices):
            tensors[name] = with_base(state, name, state.facts["differences"])
        tensors |= untrained_values(state)
        limit = self._config.export_rank or self._trainable.largest_rank
        ranks = by_module_name(self._trainable.rank_pattern, [matrix.module for matrix in matrices])
        fields = {
            "r": min(self._trainable.r, limit),
            "rank_pattern": {name: min(rank, limit) for name, rank in ranks.items()},
            "use_rslora": self._config.scaling == "rslora",
        }
        return Adapter("peft", tensors, fields, energy_metrics(list(energies.values())))

    def _ranks(self, seed: int, client: ClientFacts, matrices: Sequence[Matrix], step: RoundFacts) -> tuple[int, ...]:
        if step.kind == "evaluate":
            return allowed_ranks([self._export_rank(matrix) for matrix in matrices], client, matrices)
        return client_ranks(self._config.rank, self._config.auto_memory_share, seed, client, matrices)

    def _scale(self, matrix: Matrix, rank: int) -> float:
        return matrix.scale(rank, self._trainable, self._config.scaling)

    def _export_rank(self, matrix: Matrix) -> int:
        return min(self._config.export_rank or matrix.rank, matrix.rank)

    def _next_rank(self, state: Payload, matrix: Matrix, updates: Sequence[ClientUpdate]) -> int:
        """Number of ranks of W to keep: the trainable's, with stack all up to `base_rank`."""
        if self._config.aggregation != "stack":
            return matrix.rank
        width = state.shape(matrix.a)[0] + sum(update.payload.shape(matrix.a)[0] for update in updates)
        return min(width, matrix.inputs, matrix.outputs, self._config.base_rank or width)

    def _initial_pair(
        self, matrix: Matrix, initial_values: Mapping[str, Tensor], seed: int
    ) -> dict[str, Tensor | LazyTensor]:
        if (matrix.a in initial_values) != (matrix.b in initial_values):
            raise FederationRefused(f"initial adapter: {matrix.module} has one factor of two")
        if matrix.a not in initial_values:
            rank = 0 if self._config.aggregation == "stack" else matrix.rank
            return lazy_factors(matrix, rank, partial(initial_factors, matrix, rank, padding_key(seed, matrix)))
        b, a = initial_values[matrix.b].float() * self._scale(matrix, matrix.rank), initial_values[matrix.a].float()
        if self._config.aggregation != "zero_pad":
            truncation = truncate(b, a, matrix.rank, padding_key(seed, matrix))
            b, a = truncation.b, truncation.a
        return {matrix.a: a, matrix.b: b}

    def _instruction(
        self, state: Payload, matrices: Sequence[Matrix], ranks: Sequence[int], step: RoundFacts
    ) -> Payload:
        ranks_by_module = {matrix.module: (matrix, rank) for matrix, rank in zip(matrices, ranks, strict=True)}
        starts = RecentResults(lambda module: self._start_of_client(state, *ranks_by_module[module], step), keep=1)
        tensors: dict[str, Tensor | LazyTensor] = {}
        for matrix, rank in ranks_by_module.values():
            tensors |= lazy_factors(matrix, rank, partial(starts, matrix.module))
        tensors |= {name: state.lazy(name) for name in _plain_names(state, matrices)}
        dtype = UPLOAD_DTYPES[self._config.upload_dtype]
        expects = schema_like(Payload(tensors), dtype) | base_value_schema(state, state.facts["differences"])
        tensors |= {name: state.lazy(name) for name in state if name.endswith(FROZEN)}
        if self._config.aggregation == "stack" and step.kind != "evaluate":
            factors = [name for matrix in matrices for name in (matrix.a, matrix.b)]
            tensors |= {name + LEARNED: state.lazy(name) for name in factors}
        scales = {module: self._scale(matrix, rank) for module, (matrix, rank) in ranks_by_module.items()}
        factors_by_module = {module: [matrix.a, matrix.b] for module, (matrix, _) in ranks_by_module.items()}
        return Payload(tensors, {"expects": expects, "scales": scales, "factors": factors_by_module})

    def _start_of_client(self, state: Payload, matrix: Matrix, rank: int, step: RoundFacts) -> Pair:
        """The pair that a client of this rank starts from, as (B, A)."""
        if step.kind == "evaluate":
            b, a = self._leading(state, matrix, rank, {})
        elif self._config.aggregation == "stack":
            b, a = initial_factors(matrix, rank, padding_key(state.facts["seed"], matrix, step.number))
        else:
            b, a = state[matrix.b][:, :rank], state[matrix.a][:rank]
        return b / self._scale(matrix, rank), a.clone()

    def _leading(self, state: Payload, matrix: Matrix, rank: int, energies: Energies) -> Pair:
        """The best factors of W at a rank, as (B, A), with B at scale 1."""
        b, a, key = state[matrix.b], state[matrix.a], padding_key(state.facts["seed"], matrix)
        if self._config.aggregation == "zero_pad":
            if rank == len(a):
                return b, a
            truncation = truncate(b, a, rank, key)
            energies[matrix.module] = truncation.energy, truncation.total_energy
            return truncation.b, truncation.a
        leading_b = torch.zeros(matrix.outputs, rank)
        leading_b[:, : len(a)] = b[:, :rank]
        # The rows of A are orthonormal, so the norm of B is that of the product.
        energies[matrix.module] = _square_sum(leading_b), _square_sum(b)
        return leading_b, complete(a[:rank], rank, key)

    def _join_matrix(
        self, state: Payload, matrix: Matrix, updates: Sequence[ClientUpdate], energies: Energies, step: RoundFacts
    ) -> Pair:
        """The next W as (B, A)."""
        w = state[matrix.b], state[matrix.a]
        total = math.fsum(update.weight for update in updates)
        clients = [self._trained_factors(state, matrix, update, update.weight / total, step) for update in updates]
        if self._config.aggregation == "zero_pad":
            b, a = average_zero_padded(w, clients)
            energies[matrix.module] = squared_norm(b, a), squared_norm(b, a)
            return b, a
        b, a = stack(products(self._config.aggregation, w, clients))
        search = Search(self._config.oversampling, self._config.power_iterations)
        key = padding_key(state.facts["seed"], matrix)
        try:
            truncation = truncate(b, a, self._next_rank(state, matrix, updates), key, like=w[1], search=search)
        except ValueError as error:
            raise FederationRefused(f"{matrix.module}: {error}") from error
        energies[matrix.module] = truncation.energy, truncation.total_energy
        return truncation.b, truncation.a

    def _trained_factors(
        self, state: Payload, matrix: Matrix, update: ClientUpdate, share: float, step: RoundFacts
    ) -> TrainedFactors:
        change_of_a, change_of_b = update.payload[matrix.a].float(), update.payload[matrix.b].float()
        rank = len(change_of_a)
        b, a = self._start_of_client(state, matrix, rank, step)
        scale = self._scale(matrix, rank)
        return TrainedFactors(share, scale, a + change_of_a, b + change_of_b, change_of_a, change_of_b)


def _plain_names(state: Payload, matrices: Sequence[Matrix]) -> list[str]:
    factors = {name for matrix in matrices for name in (matrix.a, matrix.b)}
    return [name for name in state if "/" not in name and name not in factors]


def _rank_range(matrices: Sequence[Matrix], updates: Sequence[ClientUpdate]) -> dict[str, float]:
    ranks = [update.payload.shape(matrix.a)[0] for matrix in matrices for update in updates]
    return {"rank_min": float(min(ranks)), "rank_max": float(max(ranks))} if ranks else {}


def _square_sum(b: Tensor) -> float:
    return float(b.double().square().sum())
