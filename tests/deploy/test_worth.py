"""The demo's promise on its own seed; `benchmarks.demo_worth` looks at more of them."""

from pathlib import Path

import pytest

from benchmarks.demo_worth import compare


@pytest.mark.slow
def test_the_federation_beats_every_organisation_alone_and_a_bag_of_words(tmp_path: Path) -> None:
    assert compare(tmp_path, seed=0).times_the_bound >= 1
