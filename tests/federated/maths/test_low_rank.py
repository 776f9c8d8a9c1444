"""Stacked and randomized path against the full SVD of the dense product."""

import pytest
import torch
from torch import Tensor

from federated.maths.generator import stream_key
from federated.maths.low_rank import Search, cheapest, complete, squared_norm, stack, truncate

KEY = stream_key(0, "padding")
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}
# Rows, columns, ranks of the clients.
SHAPES = [(40, 30, (4, 8, 2)), (30, 40, (5, 9)), (24, 24, (16, 8)), (16, 20, (9, 9, 6)), (12, 50, (1,))]

every_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=["float32", "float64"])
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def factors(shape: tuple[int, int, tuple[int, ...]], dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Products of clients whose strengths differ, so that no two singular values of the sum are close.

    Where two are close, their directions are not determined to the last bits, by any method.
    """
    rows, columns, ranks = shape
    generator = torch.Generator().manual_seed(rows)
    pairs = []
    for number, rank in enumerate(ranks):
        strengths = 0.7 ** (torch.arange(rank, dtype=dtype) * len(ranks) + number)
        b = torch.randn(rows, rank, generator=generator, dtype=dtype) * strengths
        pairs.append((b, torch.randn(rank, columns, generator=generator, dtype=dtype)))
    return pairs


def dense(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    return sum((b.double() @ a.double() for b, a in pairs), torch.zeros(()).double())


def best(matrix: Tensor, rank: int) -> Tensor:
    u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * sigma[:rank]) @ vh[:rank]


def difference(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@every_dtype
@every_shape
class TestTruncate:
    def test_is_the_best_approximation_of_the_dense_sum_at_every_rank(
        self, shape: tuple[int, int, tuple[int, ...]], dtype: torch.dtype
    ) -> None:
        pairs = factors(shape, dtype)
        exact = ("stacked", "dense") if sum(shape[2]) <= min(shape[:2]) else ("dense",)
        for rank in range(1, min(shape[:2]) + 1):
            for path in exact:
                made = truncate(*stack(pairs), rank, KEY, path=path)  # type: ignore[arg-type]
                assert difference(made.b @ made.a, best(dense(pairs), rank)) < TOLERANCES[dtype]

    def test_rows_are_orthonormal_and_all_singular_values_are_in_b(
        self, shape: tuple[int, int, tuple[int, ...]], dtype: torch.dtype
    ) -> None:
        pairs = factors(shape, dtype)
        rank = min(shape[:2])
        made = truncate(*stack(pairs), rank, KEY)
        identity = torch.eye(rank, dtype=dtype)
        torch.testing.assert_close(made.a @ made.a.T, identity, rtol=0, atol=10 * TOLERANCES[dtype])
        sigma = torch.linalg.svdvals(dense(pairs))
        torch.testing.assert_close(
            made.b.double().norm(dim=0), sigma, rtol=0, atol=float(sigma[0]) * TOLERANCES[dtype]
        )

    def test_captured_and_total_are_squared_norms(
        self, shape: tuple[int, int, tuple[int, ...]], dtype: torch.dtype
    ) -> None:
        pairs = factors(shape, dtype)
        squares = torch.linalg.svdvals(dense(pairs)).square()
        for path in ("dense", "randomized"):
            made = truncate(*stack(pairs), 3, KEY, path=path)  # type: ignore[arg-type]
            assert made.energy == pytest.approx(float(squares[:3].sum()), rel=1e-5)
            assert made.total_energy == pytest.approx(float(squares.sum()), rel=1e-5)
        assert squared_norm(*stack(pairs)) == pytest.approx(float(squares.sum()), rel=1e-5)

    def test_the_randomized_path_is_as_good_where_it_looks_for_all_there_is(
        self, shape: tuple[int, int, tuple[int, ...]], dtype: torch.dtype
    ) -> None:
        pairs = factors(shape, dtype)
        made = truncate(*stack(pairs), 3, KEY, path="randomized")
        assert difference(made.b @ made.a, best(dense(pairs), 3)) < TOLERANCES[dtype]


class TestLackOfRank:
    def test_rows_that_the_sum_lacks_are_drawn_orthonormal_and_their_columns_are_zero(self) -> None:
        ((b, a),) = factors((12, 50, (2,)), torch.float32)
        made = truncate(b, a, 6, KEY)
        torch.testing.assert_close(made.a @ made.a.T, torch.eye(6))
        assert made.b[:, :2].norm(dim=0).min() > 0
        assert not made.b[:, 2:].any()
        torch.testing.assert_close(made.b @ made.a, b @ a)

    def test_equal_rows_of_all_clients_are_counted_once(self) -> None:
        ((b, a),) = factors((40, 30, (4,)), torch.float32)
        made = truncate(torch.cat([b, 2 * b], dim=1), torch.cat([a, a]), 8, KEY)
        assert not made.b[:, 4:].any()
        torch.testing.assert_close(made.b @ made.a, 3 * b @ a, rtol=1e-5, atol=1e-5)

    def test_nothing_at_all_has_random_rows(self) -> None:
        made = truncate(torch.zeros(9, 3), torch.zeros(3, 7), 5, KEY)
        assert not made.b.any()
        torch.testing.assert_close(made.a @ made.a.T, torch.eye(5))
        assert torch.equal(made.a, truncate(torch.zeros(9, 0), torch.zeros(0, 7), 5, KEY).a)
        assert (made.energy, made.total_energy) == (0.0, 0.0)

    def test_the_rows_depend_on_the_key_alone(self) -> None:
        none = torch.zeros(0, 20)
        assert torch.equal(complete(none, 4, KEY), complete(none, 4, KEY))
        assert not torch.equal(complete(none, 4, KEY), complete(none, 4, stream_key(1, "padding")))

    def test_fewer_rows_are_the_first_of_more(self) -> None:
        none = torch.zeros(0, 20)
        torch.testing.assert_close(complete(none, 9, KEY)[:4], complete(none, 4, KEY))

    def test_more_rows_than_columns_are_refused(self) -> None:
        with pytest.raises(ValueError, match="3 rows of 4 cannot be completed to 5"):
            complete(torch.eye(4)[:3], 5, KEY)


class TestSigns:
    def test_the_largest_entry_of_a_row_is_positive(self) -> None:
        made = truncate(*stack(factors((40, 30, (4, 8)), torch.float32)), 5, KEY)
        largest = made.a.gather(1, made.a.abs().argmax(dim=1, keepdim=True))
        assert (largest > 0).all()

    def test_rows_keep_the_side_of_those_before(self) -> None:
        b, a = stack(factors((40, 30, (4, 8)), torch.float32))
        first = truncate(b, a, 5, KEY)
        turned = -first.a
        again = truncate(b, a, 5, KEY, like=turned)
        torch.testing.assert_close(again.a, turned)
        torch.testing.assert_close(again.b, -first.b)


class TestTheChoice:
    @pytest.mark.parametrize(
        ("outputs", "inputs", "width", "rank", "path"),
        [
            (4096, 4096, 256, 64, "stacked"),
            (4096, 11008, 496, 64, "stacked"),
            (2048, 2048, 2760, 200, "randomized"),
            (384, 384, 300, 32, "stacked"),
            (8, 8, 20, 4, "dense"),
        ],
    )
    def test_is_by_cost(self, outputs: int, inputs: int, width: int, rank: int, path: str) -> None:
        assert cheapest(outputs, inputs, width, rank) == path

    def test_a_wide_stack_is_cut_well_by_the_path_chosen_for_it(self) -> None:
        generator = torch.Generator().manual_seed(0)
        left, right = (torch.linalg.qr(torch.randn(400, 60, generator=generator)).Q for _ in range(2))
        sigma = torch.arange(1, 61).float() ** -0.5
        mixed = torch.linalg.qr(torch.randn(60, 500, generator=generator).T).Q.T
        b = left @ (sigma[:, None] * mixed) + 1e-3 * torch.randn(400, 500, generator=generator)
        a = mixed.T @ right.T + 1e-3 * torch.randn(500, 400, generator=generator)
        search = Search(oversampling=40, power_iterations=2)
        assert cheapest(400, 400, 500, 20, search) == "randomized"
        made = truncate(b, a, 20, KEY, search=search)
        squares = torch.linalg.svdvals((b @ a).double()).square()
        assert made.energy / made.total_energy == pytest.approx(float(squares[:20].sum() / squares.sum()), abs=1e-3)
        again = truncate(b, a, 20, KEY, search=search)
        assert torch.equal(made.b, again.b)

    def test_a_product_that_is_never_formed_gives_the_same_answer(self) -> None:
        pairs = factors((300, 300, (40, 50)), torch.float64)
        made = truncate(*stack(pairs), 5, KEY, path="randomized", search=Search(90, 2))
        assert difference(made.b @ made.a, best(dense(pairs), 5)) < 1e-9
        assert made.total_energy == pytest.approx(float(dense(pairs).square().sum()))


class TestBadInput:
    B, A = torch.ones(6, 2), torch.ones(2, 4)

    @pytest.mark.parametrize("rank", [0, -1, 5])
    def test_a_rank_out_of_range(self, rank: int) -> None:
        with pytest.raises(ValueError, match=rf"rank {rank} is not in 1 ... 4, as a 6 x 4 matrix has"):
            truncate(self.B, self.A, rank, KEY)

    def test_factors_that_do_not_fit(self) -> None:
        with pytest.raises(ValueError, match=r"shapes \[6, 2\] and \[3, 4\] have no product"):
            truncate(self.B, torch.ones(3, 4), 1, KEY)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_a_factor_that_is_not_finite(self, value: float) -> None:
        broken = self.A.clone()
        broken[1, 2] = value
        with pytest.raises(ValueError, match="NaN or infinity"):
            truncate(self.B, broken, 1, KEY)
