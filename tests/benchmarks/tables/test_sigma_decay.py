"""Decay of W without learning, against values by hand for the aggregations with a formula."""

import pytest

from benchmarks.tables.rows_flexlora import RANKS
from benchmarks.tables.sigma_decay import ROUNDS, energies, text

# The share of the clients that hold component i (from 1), whose initial energy is 1 / i.
SHARES = [sum(i <= rank for rank in RANKS) / len(RANKS) for i in range(1, max(RANKS) + 1)]


def _left(power: int) -> list[float]:
    """Energy after each round if each multiplies component i by SHARES[i] to this power."""
    energies_by_round = [
        sum(share ** (2 * power * n) / i for i, share in enumerate(SHARES, 1)) for n in range(ROUNDS + 1)
    ]
    return [energy / energies_by_round[0] for energy in energies_by_round]


def test_product_loses_what_not_everybody_holds() -> None:
    assert energies("flexlora", "product", RANKS) == pytest.approx(_left(1), rel=1e-4)


def test_zero_padding_loses_the_square_of_it() -> None:
    assert energies("flexlora", "zero_pad", RANKS) == pytest.approx(_left(2), rel=1e-4)


@pytest.mark.parametrize("aggregation", ["delta", "rank_aware"])
def test_delta_and_rank_aware_lose_nothing(aggregation: str) -> None:
    assert energies("flexlora", aggregation, RANKS) == pytest.approx([1.0] * (ROUNDS + 1), rel=1e-5)


def test_the_text_has_a_line_per_aggregation_and_a_column_per_round() -> None:
    caption, _, table = text("flexlora", ("delta",), (2, 4)).partition("\n\n")
    assert "20 clients whose ranks go 2, 4 over and over" in caption
    lines = table.splitlines()
    assert lines[-1] == "| delta | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 |"
    assert [line.count("|") for line in lines] == [8, 8, 8]
