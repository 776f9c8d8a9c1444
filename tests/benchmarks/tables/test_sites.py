"""Split of a task over the clients: training rows, and the test set of the last client or of each."""

import json
import random
import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tables.sites import MIN_ROWS, deal, make_site, split_rows
from tests.benchmarks.tables.samples import TASK, data_folder, table_of

ROWS = [{"text": str(number), "label": str(number % 3)} for number in range(3000)]
LABELS = ("0", "1", "2")


def _skew(alpha: float) -> float:
    """Mean over the clients of the share of their most frequent label; a third if labels were spread evenly."""
    parts, _ = split_rows(ROWS, LABELS, 10, alpha, random.Random(1))
    largest = [max(Counter(row["label"] for row in part).values()) / len(part) for part in parts]
    return sum(largest) / len(largest)


@pytest.mark.parametrize("sizes", [None, 5.0])
def test_every_row_is_dealt_once(sizes: float | None) -> None:
    parts, _ = split_rows(ROWS, LABELS, 20, 0.5, random.Random(0), sizes)
    assert sorted(int(row["text"]) for part in parts for row in part) == list(range(3000))
    assert min(len(part) for part in parts) >= MIN_ROWS
    assert all(len({row["label"] for row in part}) > 1 for part in parts)


def test_a_seed_determines_the_split() -> None:
    assert split_rows(ROWS, LABELS, 5, 0.5, random.Random(4)) == split_rows(ROWS, LABELS, 5, 0.5, random.Random(4))
    assert split_rows(ROWS, LABELS, 5, 0.5, random.Random(4)) != split_rows(ROWS, LABELS, 5, 0.5, random.Random(5))


def test_a_small_alpha_gives_each_client_few_labels() -> None:
    assert _skew(1000.0) < 0.37
    assert _skew(0.5) > 0.5


def test_sizes_are_a_draw_of_their_own() -> None:
    even = [len(part) for part in split_rows(ROWS, LABELS, 10, 0.5, random.Random(2), 1e6)[0]]
    uneven = [len(part) for part in split_rows(ROWS, LABELS, 10, 0.5, random.Random(2), 5.0)[0]]
    assert max(even) - min(even) <= len(LABELS)
    # The deviation of a size that is 1 of 10 of a Dirichlet draw with 5: 300 * sqrt(9 / 51).
    assert 60 < statistics.stdev(uneven) < 250


def test_clients_keep_their_labels_where_sizes_are_drawn() -> None:
    parts, shares = split_rows(ROWS, LABELS, 10, 0.5, random.Random(2), 5.0)
    assert all(sum(row) == pytest.approx(1) for row in shares.values())
    largest = [max(Counter(row["label"] for row in part).values()) / len(part) for part in parts]
    assert statistics.mean(largest) > 0.5


def test_a_label_of_which_there_is_no_row_does_no_harm() -> None:
    parts, shares = split_rows(ROWS, (*LABELS, "rare"), 5, 1.0, random.Random(0), 5.0)
    assert sum(map(len, parts)) == 3000
    assert sum(shares["rare"]) == pytest.approx(1)


def test_test_rows_are_dealt_as_training_rows_are() -> None:
    parts, shares = split_rows(ROWS, LABELS, 10, 0.5, random.Random(3), 5.0)
    again = deal({label: [row for row in ROWS if row["label"] == label] for label in LABELS}, shares)
    assert [Counter(row["label"] for row in part) for part in again] == [
        Counter(row["label"] for row in part) for part in parts
    ]


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(SystemExit, match=r"48 rows are too few to split over 20 clients with alpha 0\.5"):
        split_rows(ROWS[:48], LABELS, 20, 0.5, random.Random(0))


class TestASite:
    def test_has_a_file_per_client_and_one_test_set(self, tmp_path: Path) -> None:
        site = make_site(data_folder(tmp_path / "data"), TASK, 3, table_of("fedavg"), tmp_path / "site")
        assert site.labels == ("blue", "green", "red")
        files = {dataset.path: dataset.test_path for dataset in site.datasets().values()}
        assert list(files.values()) == [None, site.folder / "test-001.jsonl"]
        assert sum(len(_rows(path)) for path in files if path is not None) == 96
        assert len(_rows(site.folder / "test-001.jsonl")) == 9

    def test_has_the_same_test_set_under_every_seed(self, tmp_path: Path) -> None:
        data = data_folder(tmp_path / "data")
        sites = [make_site(data, TASK, seed, table_of("fedavg"), tmp_path / str(seed)) for seed in (0, 1)]
        assert len({(site.folder / "test-001.jsonl").read_bytes() for site in sites}) == 1
        assert len({(site.folder / "client-000.jsonl").read_bytes() for site in sites}) == 2

    def test_gives_each_client_its_share_of_the_test_rows(self, tmp_path: Path) -> None:
        table = replace(table_of("fedavg"), sizes=5.0, test_shares=True)
        site = make_site(data_folder(tmp_path / "data"), TASK, 3, table, tmp_path / "site")
        tests = [dataset.test_path for dataset in site.datasets().values()]
        assert sum(len(_rows(path)) for path in tests if path is not None) == 9
        assert site.testers == (0, 1)

    def test_is_made_of_at_most_so_many_rows(self, tmp_path: Path) -> None:
        table = replace(table_of("fedavg"), train_rows=64)
        site = make_site(data_folder(tmp_path / "data"), TASK, 0, table, tmp_path / "site")
        assert sum(len(_rows(site.folder / f"client-{ordinal:03}.jsonl")) for ordinal in range(2)) == 64

    def test_of_a_task_that_is_not_there_says_which_file_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=r"weather/train.jsonl is missing"):
            make_site(tmp_path, "weather", 0, table_of("fedavg"), tmp_path / "site")


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
