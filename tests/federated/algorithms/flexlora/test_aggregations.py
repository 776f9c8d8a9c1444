"""Tests of the aggregation rules on one matrix, against numbers derived by hand or by a dense sum."""

import pytest
import torch
from torch import Tensor

from federated.contract import RoundFacts
from tests.federated.algorithms.flexlora.one_matrix import (
    ALPHA,
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
    local_products,
    model,
    product,
    scale,
    through_bytes,
    update,
)


class TestOneClient:
    @pytest.mark.parametrize("rule", ["delta", "product", "rank_aware", "zero_pad", "stack"])
    @pytest.mark.parametrize("scaling", ["rslora", "lora"])
    def test_its_scaled_product_stays_what_it_is(self, rule: str, scaling: str) -> None:
        server = half(aggregation=rule, scaling=scaling)
        state = server.start(model(), 0, None)
        instruction = server.plan(state, [client(0, 3)], STEP)[0]
        client_changes = changes(3, 0)
        local = (
            ALPHA
            / (3**0.5 if scaling == "rslora" else 3)
            * (instruction[B] + client_changes[B]).double()
            @ (instruction[A] + client_changes[A]).double()
        )
        assert close(product(server.aggregate(state, [update(0, 7.0, client_changes)], STEP).state), local)

    @pytest.mark.parametrize("rule", ["delta", "product", "rank_aware"])
    def test_it_gets_back_what_it_sent(self, rule: str) -> None:
        server = half(aggregation=rule)
        state = server.start(model(), 0, None)
        (local,) = local_products(server, state, [3])
        after = through_bytes(aggregate_changes(server, state, [3], [1.0]).state)
        for rank in (3, 6):
            instruction = server.plan(after, [client(0, rank)], STEP)[0]
            assert close(scale(rank) * instruction[B].double() @ instruction[A].double(), local)


class TestProduct:
    def test_ranks_that_fit_into_the_federations_are_joined_exactly(self) -> None:
        server = half(aggregation="product")
        state = server.start(model(), 0, None)
        locals_ = local_products(server, state, [2, 3, 1])
        reference = 0.2 * locals_[0] + 0.5 * locals_[1] + 0.3 * locals_[2]
        outcome = aggregate_changes(server, state, [2, 3, 1], [2, 5, 3])
        assert close(product(outcome.state), reference)
        assert outcome.metrics["energy_kept"] == pytest.approx(1.0)
        assert outcome.metrics["energy"] == pytest.approx(float(reference.square().sum()), rel=1e-5)

    def test_equal_a_is_averaging_b(self) -> None:
        server = half(aggregation="product")
        state = server.start(model(), 0, None)
        instruction = server.plan(state, [client(0, 4)], STEP)[0]
        client_changes = [changes(4, seed) | {A: torch.zeros(4, IN)} for seed in (0, 1)]
        outcome = server.aggregate(state, [update(0, 1, client_changes[0]), update(1, 3, client_changes[1])], STEP)
        mean_b = 0.25 * client_changes[0][B].double() + 0.75 * client_changes[1][B].double()
        assert close(product(outcome.state), scale(4) * mean_b @ instruction[A].double())

    def test_every_client_gets_the_best_approximation_at_its_rank_of_the_dense_sum(self) -> None:
        server = half(aggregation="product")
        state = initial_state(server)
        ranks, weights = [6, 2, 4, 5], [1.0, 4.0, 2.0, 3.0]
        dense = sum(
            (w / 10 * one for w, one in zip(weights, local_products(server, state, ranks), strict=True)),
            torch.zeros(()).double(),
        )
        after = aggregate_changes(server, state, ranks, weights).state
        clients = [client(rank, rank) for rank in range(1, RANK + 1)]
        for rank, instruction in server.plan(after, clients, STEP).items():
            assert close(scale(rank) * instruction[B].double() @ instruction[A].double(), best(dense, rank), 2e-5)


class TestZeroLearning:
    RANKS, WEIGHTS = (2, 4, 6), (5.0, 3.0, 2.0)

    def sigmas(self, rule: str, rounds: int) -> list[Tensor]:
        """Singular values of W in each round in which nobody learns anything."""
        server = half(aggregation=rule)
        state = initial_state(server)
        singular_values = [torch.linalg.svdvals(product(state))[:RANK]]
        for _ in range(rounds):
            state = through_bytes(aggregate_changes(server, state, self.RANKS, self.WEIGHTS, size=0.0).state)
            singular_values.append(torch.linalg.svdvals(product(state))[:RANK])
        return singular_values

    def test_the_papers_rule_shrinks_each_component_by_the_share_of_those_who_have_it(self) -> None:
        first, *later = self.sigmas("product", 3)
        component_shares = torch.tensor([1.0, 1.0, 0.5, 0.5, 0.2, 0.2]).double()
        for number, sigma in enumerate(later, start=1):
            torch.testing.assert_close(sigma, first * component_shares**number, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("rule", ["delta", "rank_aware", "stack"])
    def test_the_others_leave_w_as_it_is(self, rule: str) -> None:
        first, *later = self.sigmas(rule, 5)
        for sigma in later:
            torch.testing.assert_close(sigma, first, rtol=1e-5, atol=1e-5)

    def test_delta_leaves_the_directions_and_signs_too(self) -> None:
        server = half()
        state = initial_state(server)
        after = aggregate_changes(server, state, self.RANKS, self.WEIGHTS, size=0.0).state
        torch.testing.assert_close(after[A], state[A], rtol=0, atol=1e-5)
        torch.testing.assert_close(after[B], state[B], rtol=0, atol=1e-4)

    def test_padding_with_zeros_shrinks_by_the_square(self) -> None:
        server = half(aggregation="zero_pad")
        state = initial_state(server)
        after = aggregate_changes(server, state, self.RANKS, self.WEIGHTS, size=0.0).state
        component_shares = torch.tensor([1.0, 1.0, 0.5, 0.5, 0.2, 0.2])
        torch.testing.assert_close(after[A], state[A] * component_shares[:, None])
        torch.testing.assert_close(after[B], state[B] * component_shares)


class TestDelta:
    def test_is_w_and_what_each_client_made_of_the_part_it_saw(self) -> None:
        server = half()
        state = initial_state(server)
        ranks, weights = [1, 3, 2], [1.0, 2.0, 1.0]
        before = product(state)
        reference = before.clone()
        for weight, rank, local in zip(weights, ranks, local_products(server, state, ranks), strict=True):
            reference += weight / 4 * (local - state[B][:, :rank].double() @ state[A][:rank].double())
        outcome = aggregate_changes(server, state, ranks, weights)
        assert close(product(outcome.state), best(reference, RANK))
        squares = torch.linalg.svdvals(reference).square()
        assert outcome.metrics["energy_kept"] == pytest.approx(float(squares[:RANK].sum() / squares.sum()), rel=1e-5)


class TestRankAware:
    def test_a_component_is_averaged_over_those_who_have_it(self) -> None:
        server = half(aggregation="rank_aware")
        state = initial_state(server)
        ranks, weights = [1, 3], [3.0, 1.0]
        instruction = server.plan(state, [client(0, 1), client(1, 3)], STEP)
        low, high = (changes(rank, seed) for seed, rank in enumerate(ranks))
        reference = state[B][:, 3:].double() @ state[A][3:].double()
        for ordinal, client_changes, parts in ((0, low, (0.75,)), (1, high, (0.25, 1.0, 1.0))):
            b, a = ((instruction[ordinal][name] + client_changes[name]).double() for name in (B, A))
            reference += scale(len(a)) * (b * torch.tensor(parts).double()) @ a
        assert close(product(aggregate_changes(server, state, ranks, weights).state), best(reference, RANK))


class TestZeroPad:
    def test_factors_are_averaged_apart_with_zeros_where_a_client_has_none(self) -> None:
        server = half(aggregation="zero_pad")
        state = initial_state(server)
        low, high = changes(1, 0), changes(2, 1)
        after = server.aggregate(state, [update(0, 1, low), update(1, 1, high)], STEP).state
        torch.testing.assert_close(after[A][0], state[A][0] + (low[A][0] + high[A][0]) / 2)
        torch.testing.assert_close(after[A][1], (state[A][1] + high[A][1]) / 2)
        torch.testing.assert_close(after[B][:, 1], (state[B][:, 1] + scale(2) * high[B][:, 1]) / 2)
        assert torch.equal(after[A][2:], state[A][2:])
        assert torch.equal(after[B][:, 2:], state[B][:, 2:])


class TestStack:
    def test_adds_every_product_and_loses_nothing(self) -> None:
        server = half(aggregation="stack")
        state = server.start(model(), 0, None)
        reference = torch.zeros(OUT, IN).double()
        for number in range(1, 5):
            step = RoundFacts(number, "train", 5, 2)
            instruction = server.plan(state, [client(0, 2), client(1, 1)], step)
            round_changes = [changes(2, 2 * number), changes(1, 2 * number + 1)]
            for ordinal, share in ((0, 0.25), (1, 0.75)):
                client_changes = round_changes[ordinal]
                rank = len(client_changes[A])
                reference += (
                    share
                    * scale(rank)
                    * client_changes[B].double()
                    @ (instruction[ordinal][A] + client_changes[A]).double()
                )
            outcome = server.aggregate(state, [update(0, 1, round_changes[0]), update(1, 3, round_changes[1])], step)
            state = through_bytes(outcome.state)
            assert len(state[A]) == min(3 * number, IN)
            assert close(product(state), reference)
            assert outcome.metrics["energy_kept"] == pytest.approx(1.0)

    def test_fresh_factors_differ_from_round_to_round(self) -> None:
        server = half(aggregation="stack")
        state = server.start(model(), 0, None)
        first, second = (server.plan(state, [client(0, 2)], RoundFacts(n, "train", 5, 1))[0] for n in (1, 2))
        assert not torch.equal(first[A], second[A])
        assert not first[B].any()

    def test_a_base_rank_bounds_what_is_kept(self) -> None:
        server = half(aggregation="stack", base_rank=4)
        state = server.start(model(), 0, None)
        outcome = aggregate_changes(server, state, [3, 3], [1, 1])
        assert outcome.state[A].shape == (4, IN)
        assert outcome.metrics["energy_kept"] < 1.0
