"""Text tasks of the demo: the support messages, or a folder split over the organizations."""

import json
import random
from pathlib import Path

import pytest

from examples.quickstart import tasks


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "train.jsonl", [{"text": f"text {n}", "label": n % 3} for n in range(300)])
    write(tmp_path / "test.jsonl", [{"text": f"held out {n}", "label": n % 3} for n in range(30)])
    return tmp_path


class TestAFolder:
    def test_every_training_row_goes_to_exactly_one_organization(self, folder: Path) -> None:
        task = tasks.folder(folder, seed=1)
        texts = [row["text"] for part in task.parts.values() for row in part]
        assert sorted(texts) == sorted(f"text {n}" for n in range(300))

    def test_the_cut_is_a_function_of_the_seed(self, folder: Path) -> None:
        assert tasks.folder(folder, seed=1) == tasks.folder(folder, seed=1)
        assert tasks.folder(folder, seed=1).parts != tasks.folder(folder, seed=2).parts

    def test_labels_given_as_an_index_are_named_by_it(self, folder: Path) -> None:
        assert tasks.folder(folder, seed=0).labels == ("0", "1", "2")

    def test_the_organizations_differ_in_their_labels(self, folder: Path) -> None:
        shares = tasks.folder(folder, seed=0).label_shares()
        assert max(max(part.values()) for part in shares.values()) > 0.5

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=r"train\.jsonl is missing"):
            tasks.folder(tmp_path, seed=0)

    def test_a_row_without_a_label_is_named_by_its_line(self, folder: Path) -> None:
        write(folder / "train.jsonl", [{"text": "a", "label": 1}, {"text": "b"}])
        with pytest.raises(SystemExit, match=r"train\.jsonl, line 2: a row needs text and label"):
            tasks.folder(folder, seed=0)

    def test_a_held_out_label_that_nobody_trains_on_is_named(self, folder: Path) -> None:
        write(folder / "test.jsonl", [{"text": "a", "label": "other"}])
        with pytest.raises(SystemExit, match="label 'other' does not occur"):
            tasks.folder(folder, seed=0)

    def test_too_few_rows_are_refused(self) -> None:
        rows = [{"text": str(n), "label": str(n % 2)} for n in range(20)]
        with pytest.raises(SystemExit, match="20 rows are too few"):
            tasks.dirichlet(rows, ("0", "1"), random.Random(0))


def test_the_support_messages_are_a_task_of_three_organizations() -> None:
    task = tasks.support_messages(seed=0)
    assert tuple(task.parts) == tasks.ORGANIZATIONS
    assert {row["label"] for row in task.pooled} == set(task.labels)
