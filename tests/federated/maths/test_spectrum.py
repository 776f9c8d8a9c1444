"""Spectral estimates for matrices with a known spectrum."""

import pytest
import torch
from torch import Tensor

from federated.maths.generator import stream_key
from federated.maths.spectrum import Spectrum, eigengap, lanczos, lipschitz, number_of_layers, plateau, rademacher


def spectrum_of(values: list[float], start: Tensor | None = None, steps: int = 50) -> Spectrum:
    """Of the symmetric matrix with these eigenvalues, in a basis that is not the standard one."""
    generator = torch.Generator().manual_seed(3)
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=generator))
    matrix = basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T
    seen = basis.sum(dim=1) if start is None else basis @ start
    return lanczos(lambda vector: matrix @ vector, seen, steps)


def points(values: list[float], weights: list[float] | None = None) -> Spectrum:
    count = len(values)
    shares = weights or [1 / count] * count
    return Spectrum(torch.tensor(values, dtype=torch.float64), torch.tensor(shares, dtype=torch.float64))


class TestLanczos:
    def test_as_many_steps_as_dimensions_give_every_eigenvalue_with_its_weight(self) -> None:
        found = spectrum_of([3.0, -1.0, 0.5, 7.0])
        assert torch.allclose(found.values, torch.tensor([-1.0, 0.5, 3.0, 7.0], dtype=torch.float64))
        assert torch.allclose(found.weights, torch.full((4,), 0.25, dtype=torch.float64))

    def test_it_ends_where_the_start_spans_no_more(self) -> None:
        start = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
        found = spectrum_of([3.0, -1.0, 0.5, 7.0], start)
        assert torch.allclose(found.values, torch.tensor([0.5, 3.0], dtype=torch.float64))
        assert len(spectrum_of([2.0] * 6).values) == 1

    def test_an_operator_of_zeros_has_one_value_and_it_is_zero(self) -> None:
        found = lanczos(torch.zeros_like, torch.ones(5))
        assert (found.values.tolist(), found.weights.tolist()) == ([0.0], [1.0])

    def test_many_steps_on_a_clustered_spectrum_keep_the_vectors_orthogonal(self) -> None:
        """Without it, copies of the largest value appear (ghosts) and the low ones are never found."""
        values = [2.0**-power for power in range(40)]
        found = spectrum_of(values, steps=40)
        assert len(found.values) == 40
        assert torch.allclose(found.values, torch.tensor(values[::-1], dtype=torch.float64), rtol=1e-3, atol=1e-9)

    def test_few_steps_reproduce_the_moments_of_the_spectrum(self) -> None:
        values = torch.linspace(-1, 4, 30, dtype=torch.float64)
        found = spectrum_of(values.tolist(), steps=4)
        assert len(found.values) == 4
        for power in range(8):
            assert (found.weights * found.values**power).sum() == pytest.approx(float((values**power).mean()))

    def test_a_start_of_zeros_is_refused(self) -> None:
        with pytest.raises(ValueError, match="vector of zeros"):
            lanczos(lambda vector: vector, torch.zeros(3))

    def test_an_operator_that_is_not_finite_is_refused(self) -> None:
        with pytest.raises(ValueError, match="not finite at step 1"):
            lanczos(lambda vector: vector * torch.nan, torch.ones(3))


class TestPlateau:
    def test_half_far_above_and_half_below_zero_keeps_half(self) -> None:
        assert plateau(points([-5.0, -3.0, 6.0, 9.0])) == pytest.approx(0.5)

    def test_values_just_above_zero_fall_before_the_plateau(self) -> None:
        assert plateau(points([-5.0, 0.05, 6.0, 9.0, 9.5])) == pytest.approx(0.6)

    def test_a_spectrum_that_ends_below_the_first_step_is_scanned_in_smaller_ones(self) -> None:
        assert plateau(points([-2e-4, 1e-3])) == pytest.approx(0.5)

    def test_all_the_same_and_positive_keeps_all(self) -> None:
        assert plateau(points([2e-6])) == pytest.approx(1.0)

    @pytest.mark.parametrize("values", [[0.0], [-3.0, -1.0]])
    def test_nothing_above_zero_keeps_nothing(self, values: list[float]) -> None:
        assert plateau(points(values)) == pytest.approx(0.0)


class TestEigengap:
    def test_what_lies_above_the_first_wide_gap_is_kept(self) -> None:
        assert eigengap(points([0.0, 0.1, 2.0, 9.0], [0.2, 0.3, 0.4, 0.1]), lipschitz=0.25) == pytest.approx(0.5)

    def test_without_a_gap_all_is_kept(self) -> None:
        assert eigengap(points([0.0, 0.1, 0.2]), lipschitz=1.0) == 1.0

    def test_a_quadratic_has_the_lipschitz_constant_zero_and_a_cubic_has_not(self) -> None:
        step = torch.tensor([0.0, 2.0])
        assert lipschitz(3 * step, 3 * step, step) == 0.0
        assert lipschitz(3 * step + step**2, 3 * step, step) == pytest.approx(2.0)
        assert lipschitz(step * 0, step * 0, step * 0) == 0.0


class TestNumberOfLayers:
    @pytest.mark.parametrize(
        ("share", "factor", "most", "expected"),
        [(0.5, 1.0, None, 3), (0.0, 1.0, None, 1), (1.0, 2.0, None, 6), (1.0, 1.0, 5, 5), (0.58, 1.0, None, 3),
         (0.59, 1.0, None, 4), (0.5, 0.5, None, 2)],
    )  # fmt: skip
    def test_it_is_rounded_and_kept_between_one_and_the_most(
        self, share: float, factor: float, most: int | None, expected: int
    ) -> None:
        assert number_of_layers(share, 6, factor, most) == expected

    def test_one_layer_is_kept_of_one_even_where_the_most_is_none(self) -> None:
        assert number_of_layers(0.5, 1, most=0) == 1


def test_the_start_vector_is_of_signs_and_a_function_of_its_key() -> None:
    one, again, other = (rademacher(stream_key(seed, "start"), 500) for seed in (1, 1, 2))
    assert set(one.tolist()) == {-1.0, 1.0}
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert abs(float(one.mean())) < 0.2
