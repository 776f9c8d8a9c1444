"""Tests of the local steps: the recorded step is the one that was taken."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from federated.algorithm_kit.local_training import TrainingDiverged
from federated.algorithms.fedkseed.perturbation import LocalSteps, PerturbedWeights, StepSizes
from federated.maths.directions import directions

COUNT = 128
DIRECTIONS = directions("hadamard", 2, COUNT)
SIZES = StepSizes(epsilon=2**-8, learning_rate=0.125, max_difference=None, clip_quantile=None, max_scalar=100.0)


def make_weights(elements: int = 300) -> tuple[Tensor, PerturbedWeights]:
    value = torch.linspace(-1, 1, elements)
    return value, PerturbedWeights(DIRECTIONS, {"weight": value})


def along(index: int, elements: int = 300) -> Tensor:
    return DIRECTIONS.over({"weight": elements}, torch.device("cpu")).direction(index).values("weight")


def take_steps(
    value: Tensor, weights: PerturbedWeights, loss: Callable[[], Tensor], seeds: list[int], **sizes: Any
) -> Any:
    fields = {name: sizes.get(name, getattr(SIZES, name)) for name in StepSizes.__slots__}
    steps = LocalSteps(weights, StepSizes(**fields))
    with weights.keep_clean():
        for seed in seeds:
            steps.step(seed, loss)
    return steps.record


class TestAStep:
    def test_records_the_slope_along_the_direction_and_goes_down_it(self) -> None:
        value, weights = make_weights()
        begin, slope = value.clone(), torch.linspace(0, 1, 300)
        record = take_steps(value, weights, lambda: slope @ value, [5])
        # Of a linear loss the two-point slope is exact.
        assert record.seeds == [5]
        assert record.scalars == pytest.approx([float(slope @ along(5))], rel=1e-3)
        torch.testing.assert_close(value, begin - 0.125 * record.scalars[0] * along(5))

    def test_evaluates_both_sides_of_the_clean_weights(self) -> None:
        value, weights = make_weights()
        begin, values = value.clone(), list[Tensor]()

        def loss() -> Tensor:
            values.append(value.clone())
            return torch.zeros(())

        take_steps(value, weights, loss, [5])
        assert torch.equal(values[0], begin + 2**-8 * along(5))
        assert torch.equal(values[1], begin - 2**-8 * along(5))

    def test_many_steps_without_a_slope_leave_every_bit_as_it_was(self) -> None:
        value, weights = make_weights()
        value.mul_(1 / 3)
        begin = value.clone()
        record = take_steps(value, weights, lambda: torch.ones(()), list(range(100)), epsilon=1e-3)
        assert record.scalars == [0.0] * 100
        assert torch.equal(value, begin)

    def test_is_recorded_as_float32(self) -> None:
        value, weights = make_weights()
        record = take_steps(value, weights, lambda: value.square().sum(), [1, 2, 3])
        assert torch.tensor(record.scalars, dtype=torch.float32).tolist() == record.scalars


class TestAStepThatIsNotTaken:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("side", [0, 1])
    def test_a_loss_that_is_not_finite_leaves_no_trace(self, bad: float, side: int) -> None:
        value, weights = make_weights()
        begin, passes = value.clone(), iter(range(4))

        def loss() -> Tensor:
            return torch.tensor(bad) if next(passes) == side else value.sum()

        record = take_steps(value, weights, loss, [7])
        assert (record.seeds, record.scalars, record.losses, record.not_finite) == ([], [], [], 1)
        assert torch.equal(value, begin)
        with pytest.raises(TrainingDiverged, match="none of the 1 steps had a finite loss"):
            record.mean_loss()

    def test_too_large_a_difference_leaves_no_trace(self) -> None:
        value, weights = make_weights()
        begin = value.clone()
        record = take_steps(value, weights, lambda: 1000 * value.sum(), [7], max_difference=0.01)
        assert (record.seeds, record.too_large) == ([], 1)
        assert torch.equal(value, begin)

    def test_an_error_in_the_loss_gives_the_clean_weights_back(self) -> None:
        value, weights = make_weights()
        begin = value.clone()

        def loss() -> Tensor:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            take_steps(value, weights, loss, [7])
        assert torch.equal(value, begin)


class TestClipping:
    def test_a_scalar_is_clipped_to_the_servers_bound_and_the_step_with_it(self) -> None:
        value, weights = make_weights()
        begin, sign = value.clone(), along(5)
        record = take_steps(value, weights, lambda: 10 * (sign @ value), [5], max_scalar=2.0)
        assert (record.scalars, record.clipped) == ([2.0], 1)
        torch.testing.assert_close(value, begin - 0.25 * sign)

    def test_beyond_the_jobs_own_quantile_it_is_clipped_once_there_are_sixteen(self) -> None:
        value, weights = make_weights(128)
        sizes = [float(number) for number in range(1, 17)] + [1000.0, 3.0]
        rows = [along(seed, 128) for seed in range(18)]
        passes = iter(index // 2 for index in range(36))

        def loss() -> Tensor:
            # Only this step's direction has a slope, and directions are orthogonal.
            index = next(passes)
            return sizes[index] * (rows[index] @ value) / 128

        record = take_steps(
            value, weights, loss, list(range(18)), clip_quantile=0.75, learning_rate=1e-6, max_scalar=1e6
        )
        # Of 1 to 16 the quantile 0.75 is 12.
        assert record.scalars[:16] == pytest.approx(sizes[:16], rel=0.02)
        assert record.scalars[16:] == pytest.approx([12.0, 3.0], rel=0.02)
        assert record.clipped == 1


class TestRebuild:
    def test_without_scalars_every_bit_is_the_start(self) -> None:
        value, weights = make_weights()
        begin = value.clone()
        weights.rebuild(torch.zeros(COUNT))
        assert torch.equal(value, begin)

    def test_is_the_start_less_the_sum_of_directions(self) -> None:
        value, weights = make_weights()
        begin = value.clone()
        weights.rebuild(torch.eye(COUNT)[3] * 0.5 - torch.eye(COUNT)[9] * 0.25)
        torch.testing.assert_close(value, begin - 0.5 * along(3) + 0.25 * along(9))

    def test_a_parameter_in_another_format_is_refused_by_name(self) -> None:
        with pytest.raises(ValueError, match="tensor 'half' must be contiguous float32"):
            PerturbedWeights(DIRECTIONS, {"half": torch.zeros(4, dtype=torch.bfloat16)})
