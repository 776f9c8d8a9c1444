"""The table of troubles names tests that there are."""

from pathlib import Path

import pytest

from tests.troubles import rows_of_models, rows_of_services
from tests.troubles.names import is_there, names_of
from tests.troubles.rows import ROWS

ALL = sorted({test for row in ROWS.values() for test in row.tests})


@pytest.mark.parametrize("test", ALL)
def test_each_test_that_is_named_is_there(test: str) -> None:
    assert is_there(test)


def test_every_row_has_an_id_of_its_own_an_answer_and_a_test() -> None:
    assert list(ROWS) == sorted(ROWS)
    assert len(ROWS) == len(rows_of_models.ROWS) + len(rows_of_services.ROWS)
    for name, (answer, tests) in ROWS.items():
        assert answer.startswith(("read", "refused", "right")), name
        assert tests, name
        assert len(set(tests)) == len(tests), name


def test_every_trouble_that_is_tried_beside_the_table_stands_in_it() -> None:
    tried = {
        name.split("_")[1].upper()
        for file in Path(__file__).parent.glob("test_*.py")
        if file.name != Path(__file__).name
        for name in names_of(f"tests/troubles/{file.name}")
        if name.startswith("test_")
    }
    assert tried <= {name.upper() for name in ROWS}
