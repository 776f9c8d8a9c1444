"""Execution of jobs over real sessions, for every algorithm."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.tables import federation
from benchmarks.tables.definition import JobResult, Table
from benchmarks.tables.jobs import jobs_of
from benchmarks.tables.sites import make_site
from federated import registry
from tests.benchmarks.tables.samples import TASK, data_folder, table_of
from tests.support.tiny_models import bert_folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield bert_folder(tmp_path_factory.mktemp("base"))
    torch.set_num_threads(threads)


def _run(table: Table, base: Path, folder: Path) -> JobResult:
    site = make_site(data_folder(folder / "data"), TASK, 3, table, folder / "site")
    (job,) = jobs_of(table)
    return federation.run(job, site, base)


@pytest.mark.parametrize("algorithm", registry.algorithms())
def test_a_run_tells_accuracy_on_the_test_set_bytes_and_seconds(algorithm: str, base: Path, tmp_path: Path) -> None:
    run = _run(table_of(algorithm), base, tmp_path)
    assert (run.row, run.task, run.seed) == ("its example", TASK, 3)
    assert run.evaluations.keys() == {1}
    assert run.evaluations[1]["examples"] == 9
    assert run.accuracy * 9 == pytest.approx(round(run.accuracy * 9))
    assert min(run.download_bytes, run.upload_bytes, run.seconds) > 0


def test_what_was_run_twice_came_out_twice(base: Path, tmp_path: Path) -> None:
    first, second = (_run(table_of("fedavg"), base, tmp_path / name) for name in ("first", "second"))
    for run in (first, second):
        run.last.pop("seconds")
    assert replace(first, seconds=0) == replace(second, seconds=0)


def test_the_state_is_evaluated_every_so_many_rounds_and_after_the_last(base: Path, tmp_path: Path) -> None:
    table = replace(table_of("fedavg"), rounds=3, evaluate_every=2)
    assert _run(table, base, tmp_path).evaluations.keys() == {2, 3}


@pytest.mark.parametrize(("algorithm", "personal"), [("fedavg", False), ("fibecfed", True)])
def test_of_personal_parts_the_own_accuracy_is_told_and_what_it_took_grows(
    algorithm: str, personal: bool, base: Path, tmp_path: Path
) -> None:
    table = replace(table_of(algorithm), rounds=2, evaluate_every=1, test_shares=True)
    first, second = _run(table, base, tmp_path).evaluations.values()
    assert ("own_accuracy" in second) == personal
    assert second["examples"] == 9
    assert 0 < first["seconds"] < second["seconds"]
    assert 0 < first["bytes"] < second["bytes"]
