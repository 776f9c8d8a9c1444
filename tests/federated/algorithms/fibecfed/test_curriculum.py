"""Tests of the curriculum: shares, whole batches, and orders."""

from typing import get_args

import pytest
import torch

from federated.algorithm_kit.local_training import epoch_order
from federated.algorithms.fibecfed.config import FibecFedConfig
from federated.algorithms.fibecfed.curriculum import admitted_share, curriculum_order, easy_first, examples_to_admit

PACINGS = get_args(FibecFedConfig.model_fields["pacing"].annotation)


@pytest.mark.parametrize("pacing", PACINGS)
class TestPacing:
    def test_it_starts_at_its_start_ends_at_one_and_never_falls(self, pacing: str) -> None:
        shares = [admitted_share(pacing, step / 50, 0.6) for step in range(51)]
        assert shares == sorted(shares)
        assert shares[0] == pytest.approx(1.0 if pacing == "none" else 0.6)
        assert shares[-1] == pytest.approx(1.0)

    @pytest.mark.parametrize("examples", [1, 3, 8, 9, 100])
    def test_whole_batches_are_admitted_at_least_one_and_in_the_end_all(self, pacing: str, examples: int) -> None:
        config = FibecFedConfig(pacing=pacing, batch_size=8, pacing_start=0.01)  # type: ignore[arg-type]
        counts = [examples_to_admit(config, examples, number, 10) for number in range(1, 11)]
        assert counts == sorted(counts)
        assert all(count == examples or count % 8 == 0 for count in counts)
        assert min(counts) >= min(8, examples)
        assert counts[7:] == [examples] * 3


def test_the_default_pacing_saves_a_sixth_of_the_steps() -> None:
    config = FibecFedConfig(batch_size=1)
    total = sum(examples_to_admit(config, 1000, number, 1000) for number in range(1, 1001))
    assert total / 1_000_000 == pytest.approx(0.84, abs=0.001)


def test_shares_in_the_middle() -> None:
    middle = {pacing: admitted_share(pacing, 0.25, 0.6) for pacing in PACINGS}
    assert middle == pytest.approx(
        {"linear": 0.7, "sqrt": 0.8, "quadratic": 0.625, "step": 0.7, "none": 1.0, "exponential": 0.600203}, abs=1e-6
    )


class TestOrder:
    def test_equally_hard_examples_stay_in_their_order(self) -> None:
        assert easy_first(torch.tensor([2.0, 1.0, 2.0, 0.5, 1.0])) == [3, 1, 4, 0, 2]

    def test_all_admitted_are_shuffled_as_the_plain_loop_shuffles_them(self) -> None:
        order = curriculum_order([3, 0, 2, 1, 4], 5, seed=7, easy_to_hard=False)
        assert [order(epoch) for epoch in range(3)] == [epoch_order(7, epoch, 5) for epoch in range(3)]

    def test_only_the_admitted_are_drawn_each_epoch_in_another_order(self) -> None:
        indices = list(range(0, 40, 2))
        order = curriculum_order(indices, 40, seed=7, easy_to_hard=False)
        first, second = order(0), order(1)
        assert sorted(first) == sorted(second) == indices
        assert first != second

    def test_ordered_goes_from_easy_to_hard(self) -> None:
        assert curriculum_order([3, 0, 2], 5, seed=7, easy_to_hard=True)(1) == [3, 0, 2]
