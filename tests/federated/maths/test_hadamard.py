"""Structured directions: the properties that random signs do not have."""

import pytest
import torch

from federated.maths.hadamard import Hadamard
from federated.maths.walsh import sylvester, transform

CPU = torch.device("cpu")


def by_doubling(size: int) -> torch.Tensor:
    """Sylvester's construction: `H_2n = [[H_n, H_n], [H_n, -H_n]]`."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)])
    return matrix


@pytest.mark.parametrize("size", [1, 2, 64])
def test_the_matrix_is_sylvesters(size: int) -> None:
    assert torch.equal(sylvester(size, torch.float32, CPU), by_doubling(size))


@pytest.mark.parametrize("size", [128, 256, 512, 1024])
def test_two_products_are_the_whole_transform(size: int) -> None:
    blocks = torch.randn(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(transform(blocks), blocks @ by_doubling(size).double())


@pytest.mark.parametrize("count", [128, 256, 512])
def test_directions_are_signs_and_orthogonal_inside_a_full_block(count: int) -> None:
    opened = Hadamard(3, count).over({"weight": 2 * count + 10}, CPU)
    rows = torch.stack([opened.direction(index).values("weight") for index in range(count)])
    assert torch.equal(rows.abs(), torch.ones_like(rows))
    for first in (0, count):
        block = rows[:, first : first + count]
        assert torch.equal(block @ block.T, count * torch.eye(count))


def test_blocks_and_tensors_of_one_length_have_signs_and_permutations_of_their_own() -> None:
    opened = Hadamard(3, 128).over({"a": 512, "b": 512}, CPU)
    assert len({tuple(row) for row in opened.signs.tolist()}) == 8
    assert len(set(zip(opened.odd.flatten().tolist(), opened.offset.flatten().tolist(), strict=True))) == 8


def test_factors_are_odd_so_that_every_block_permutes_the_columns() -> None:
    opened = Hadamard(3, 128).over({"a": 128 * 40}, CPU)
    columns = (opened.odd * torch.arange(128, dtype=torch.int32) + opened.offset) % 128
    assert torch.equal(columns.sort(dim=1).values, torch.arange(128, dtype=torch.int32).expand(40, -1))


def test_moving_there_and_back_is_as_near_as_float32_allows() -> None:
    opened = Hadamard(3, 128).over({"weight": 1000}, CPU)
    begin = {"weight": torch.linspace(-1, 1, 1000)}
    out = {"weight": torch.empty(1000)}
    opened.direction(4).move(1e-3, begin, out)
    opened.direction(4).move(-1e-3, out, out)
    torch.testing.assert_close(out["weight"], begin["weight"], rtol=0, atol=2e-7)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [256, 512, 1024, 2048, 4096, 8192])
class TestOnAGpu:
    """On both sides of what the kernels do, and a truncated block."""

    def test_a_rebuild_agrees_to_rounding_and_with_whole_numbers_in_every_bit(self, count: int) -> None:
        elements = 3 * count + 77
        whole = (torch.arange(count) % 17 - 8).float()
        fractions = torch.randn(count, generator=torch.Generator().manual_seed(1))
        for coefficients, tolerance in ((whole, 0.0), (fractions, 1e-3)):
            made = []
            for device in (CPU, torch.device("cuda")):
                values = torch.zeros(elements, device=device)
                Hadamard(3, count).over({"weight": elements}, device).subtract(coefficients, {"weight": values})
                made.append(values.cpu())
            torch.testing.assert_close(made[1], made[0], rtol=0, atol=tolerance)

    def test_a_move_has_the_same_bits(self, count: int) -> None:
        elements = 3 * count + 77
        made = []
        for device in (CPU, torch.device("cuda")):
            begin = {"weight": torch.linspace(-1, 1, elements).to(device)}
            Hadamard(3, count).over({"weight": elements}, device).direction(count // 3).move(1e-3, begin, begin)
            made.append(begin["weight"].cpu())
        assert torch.equal(made[0], made[1])
