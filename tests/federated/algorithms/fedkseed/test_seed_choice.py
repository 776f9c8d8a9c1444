"""Tests of the sampling of directions: uniformly, or by their scalars."""

import math

import pytest
import torch

from federated.algorithms.fedkseed.seed_choice import probabilities, uniform_seeds, weighted_seeds


class TestProbabilities:
    def test_before_the_first_round_all_are_equal(self) -> None:
        actual = probabilities(torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=torch.float64))
        assert actual.tolist() == [0.125] * 8

    def test_are_the_softmax_of_the_scaled_means_with_one_initial_zero(self) -> None:
        # Means 0/1, 2/2 and 6/3: scaled 0, 0.5, 1.
        actual = probabilities(torch.tensor([0, 1, 2]), torch.tensor([0.0, 2.0, 6.0], dtype=torch.float64))
        whole = 1 + math.exp(0.5) + math.e
        assert actual.tolist() == pytest.approx([1 / whole, math.exp(0.5) / whole, math.e / whole], rel=1e-9)

    def test_sum_to_one_and_differ_by_at_most_a_factor_of_e(self) -> None:
        generator = torch.Generator().manual_seed(2)
        counts = torch.randint(0, 50, (4096,), generator=generator)
        sums = torch.rand(4096, dtype=torch.float64, generator=generator) * 1000 * counts
        actual = probabilities(counts, sums)
        assert float(actual.sum()) == pytest.approx(1.0, abs=1e-12)
        assert float(actual.max() / actual.min()) <= math.e


class TestDraws:
    def test_are_a_function_of_the_jobs_seed(self) -> None:
        likely = torch.full((100,), 0.01)
        assert uniform_seeds(5, 50, 100) == uniform_seeds(5, 50, 100) != uniform_seeds(6, 50, 100)
        assert weighted_seeds(5, 50, likely) == weighted_seeds(5, 50, likely) != weighted_seeds(6, 50, likely)

    def test_uniform_ones_cover_all_directions_equally(self) -> None:
        counts = torch.bincount(torch.tensor(uniform_seeds(1, 65_536, 16)), minlength=16)
        # 4096 are expected, with a standard deviation of 62.
        assert counts.min() > 3800
        assert counts.max() < 4400

    def test_chosen_ones_follow_the_probabilities(self) -> None:
        likely = torch.tensor([0.1, 0.0, 0.6, 0.3])
        counts = torch.bincount(torch.tensor(weighted_seeds(1, 20_000, likely)), minlength=4) / 20_000
        assert counts[1] == 0
        torch.testing.assert_close(counts, likely, rtol=0, atol=0.015)

    def test_with_equal_probabilities_both_draw_the_same(self) -> None:
        assert weighted_seeds(3, 1000, torch.full((128,), 1 / 128)) == uniform_seeds(3, 1000, 128)
