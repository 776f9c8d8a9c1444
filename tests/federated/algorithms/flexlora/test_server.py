"""Tests of FlexLoRA's server half apart from the rules: start, export, heads, shards, and refusals."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from federated.contract import ClientFacts, RoundFacts, ServerHalf, UpdateRefused
from federated.payloads.payload import Payload
from federated.registry import make_config, server_half
from federated.trainable import Lora
from tests.federated.algorithms.flexlora.one_matrix import (
    HEAD,
    IN,
    OUT,
    RANK,
    STEP,
    A,
    B,
    aggregate_changes,
    best,
    changes,
    client,
    close,
    half,
    initial_state,
    model,
    product,
    scale,
    through_bytes,
    update,
)


class TestBesideTheFactors:
    def test_a_head_is_the_weighted_mean_and_ranks_are_told(self) -> None:
        server = half()
        state = server.start(model(), 0, None)
        outcome = aggregate_changes(server, state, [1, 4], [1.0, 3.0])
        reference = (changes(1, 0)[HEAD] + 3 * changes(4, 1)[HEAD]) / 4
        torch.testing.assert_close(outcome.state[HEAD], reference)
        assert (outcome.metrics["rank_min"], outcome.metrics["rank_max"]) == (1.0, 4.0)
        assert outcome.metrics["train_loss"] == 1.0

    def test_shards_joined_are_the_whole(self) -> None:
        server = half()
        state = initial_state(server)
        updates = [update(0, 1, changes(2, 0)), update(1, 2, changes(5, 1))]
        whole = server.aggregate(state, updates, STEP)
        parts = []
        for names in ((A, B), (HEAD,)):
            cut = [update(one.ordinal, one.weight, {name: one.payload[name] for name in names}) for one in updates]
            shard = Payload({name: state[name] for name in names}, state.facts)
            parts.append(server.aggregate(shard, cut, STEP))
        outcome = server.join(state, parts, STEP)
        assert outcome.state.encode() == whole.state.encode()
        assert {ordinal: note.facts for ordinal, note in outcome.notes.items()} == {0: {"rank": 2}, 1: {"rank": 5}}
        assert dict(outcome.metrics) == pytest.approx(dict(whole.metrics))


class TestRankOfAClient:
    RANK_BYTES = 16 * (IN + OUT) * 10

    def told_rank(self, server: ServerHalf, state: Payload, ranks_free: int, note: Payload | None) -> int:
        free = {"free_memory_bytes": ranks_free * self.RANK_BYTES}
        instruction = server.plan(state, [ClientFacts(0, "one", 9, free, {}, note, 0)], STEP)[0]
        return instruction.shape(A)[0]

    def test_under_auto_is_that_of_its_first_update_whatever_is_free_later(self) -> None:
        server = half()
        state = server.start(model(), 0, None)
        assert self.told_rank(server, state, 2, None) == 2
        outcome = server.aggregate(state, [update(0, 1, changes(2, 0)), update(1, 1, changes(5, 1))], STEP)
        notes = {ordinal: through_bytes(note) for ordinal, note in outcome.notes.items()}
        assert [self.told_rank(server, state, 4, notes[ordinal]) for ordinal in (0, 1)] == [2, 5]
        update_with_note = replace(update(0, 1, changes(4, 0)), note=notes[0])
        assert dict(server.aggregate(state, [update_with_note], STEP).notes) == {}

    def test_is_remembered_under_auto_alone(self) -> None:
        server = server_half("flexlora", make_config("flexlora", {"rank": "normal"}), Lora(r=RANK))
        assert not aggregate_changes(server, server.start(model(), 0, None), [2], [1.0]).notes


class TestGradientFlows:
    def test_every_direction_of_a_first_round_has_one(self) -> None:
        server = half()
        self.flows(server, server.start(model(), 0, None))

    def test_every_direction_that_w_lacks_has_one(self) -> None:
        server = half()
        state = server.start(model(), 0, None)
        after = through_bytes(aggregate_changes(server, state, [2], [1.0]).state)
        assert not after[B][:, 2:].any()
        self.flows(server, after)

    def flows(self, server: ServerHalf, state: Payload) -> None:
        instruction = server.plan(state, [client(0, RANK)], STEP)[0]
        b, a = (instruction[name].clone().requires_grad_() for name in (B, A))
        inputs = torch.randn(30, IN, generator=torch.Generator().manual_seed(0))
        targets = torch.randn(30, OUT, generator=torch.Generator().manual_seed(1))
        cast("Any", (inputs @ a.T @ b.T - targets).square().sum()).backward()
        assert b.grad is not None
        assert b.grad.norm(dim=0).min() > 1e-2 * b.grad.norm(dim=0).max()


class TestBadInput:
    def test_a_rank_above_the_matrix_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"layer\.query: rank 11 is above 10, all that 12 x 10 has"):
            half(rank=11).start(model(11), 0, None)

    def test_a_model_without_factors_is_refused(self) -> None:
        bare = model().model_copy(update={"tensors": model().tensors[:1]})
        with pytest.raises(ValueError, match="no LoRA factors"):
            half().start(bare, 0, None)

    def test_a_factor_that_is_not_finite_names_its_module(self) -> None:
        server = half()
        state = server.start(model(), 0, None)
        client_changes = changes(2, 0)
        client_changes[A][0, 0] = torch.nan
        with pytest.raises(ValueError, match=r"layer\.query: a factor holds NaN or infinity"):
            server.aggregate(state, [update(0, 1, client_changes)], STEP).state.encode()

    def test_an_update_of_another_rank_than_instructed_is_refused(self) -> None:
        server = half()
        state = server.start(model(), 0, None)
        instruction = server.plan(state, [client(0, 2)], STEP)[0]
        server.check(instruction, Payload(changes(2, 0)))
        with pytest.raises(UpdateRefused, match=r"lora_A\.weight' has shape \[3, 10\], expected \[2, 10\]"):
            server.check(instruction, Payload(changes(3, 0)))

    def test_a_client_with_other_modules_is_refused(self) -> None:
        server = half()
        instruction = server.plan(server.start(model(), 0, None), [client(0, 2)], STEP)[0]
        other = {name.replace("query", "value"): value for name, value in changes(2, 0).items()}
        with pytest.raises(UpdateRefused) as error:
            server.check(instruction, Payload(other))
        assert error.value.tensor == A

    def test_an_initial_adapter_with_one_factor_of_two_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"initial adapter: layer\.query has one factor of two"):
            half().start(model(), 0, Payload({A: torch.ones(RANK, IN)}))


class TestStart:
    @pytest.mark.parametrize("rule", ["delta", "zero_pad", "stack"])
    def test_an_initial_adapter_is_what_was_learned(self, rule: str) -> None:
        initial = {name: value for name, value in changes(RANK, 0).items() if name != HEAD}
        state = half(aggregation=rule).start(model(), 0, Payload(initial))
        assert close(product(state), scale(RANK) * initial[B].double() @ initial[A].double())

    def test_without_one_w_is_zero_and_the_rows_are_orthonormal(self) -> None:
        state = half().start(model(), 3, None)
        assert not state[B].any()
        torch.testing.assert_close(state[A] @ state[A].T, torch.eye(RANK))
        assert not torch.equal(state[A], half().start(model(), 4, None)[A])


class TestExport:
    def test_is_the_best_of_w_at_the_export_rank_with_the_energy_it_keeps(self) -> None:
        server = half(export_rank=2)
        state = initial_state(server)
        adapter = server.export(state)
        assert adapter.tensors[A].shape == (2, IN)
        assert close(scale(2) * adapter.tensors[B].double() @ adapter.tensors[A].double(), best(product(state), 2))
        squares = torch.linalg.svdvals(product(state)).square()
        assert adapter.facts["energy_kept"] == pytest.approx(float(squares[:2].sum() / squares.sum()), rel=1e-5)
        assert adapter.config == {"r": 2, "rank_pattern": {}, "use_rslora": True}

    @pytest.mark.parametrize("rule", ["zero_pad", "stack"])
    def test_of_every_rule_is_the_best_there_is(self, rule: str) -> None:
        server = half(aggregation=rule, export_rank=3)
        state = initial_state(server)
        adapter = server.export(state)
        assert close(scale(3) * adapter.tensors[B].double() @ adapter.tensors[A].double(), best(product(state), 3))

    def test_evaluated_is_what_is_exported_within_what_a_node_allows(self) -> None:
        server = half(export_rank=4)
        state = initial_state(server)
        step = RoundFacts(1, "evaluate", 5, 3)
        instructions = server.plan(state, [client(0, 1), client(1, 6, max_rank=2)], step)
        assert torch.equal(instructions[0][A], server.export(state).tensors[A])
        assert torch.equal(instructions[0][B], server.export(state).tensors[B])
        assert instructions[1][A].shape == (2, IN)
