"""The command line of tables: refused arguments, failed jobs, and the continuation of an interrupted table."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.discovery import find_benchmarks
from benchmarks.tables import definition
from benchmarks.tables.__main__ import complete, main, readme
from benchmarks.tables.definition import Row, check_row
from benchmarks.tables.jobs import RunError, jobs_of, run_job
from benchmarks.tables.results import Results
from benchmarks.tables.sites import make_site
from federated import registry
from tests.benchmarks.tables.samples import data_folder, job_result, table_of
from tests.support.tiny_models import bert_folder


@pytest.mark.parametrize("name", definition.names())
class TestATable:
    def test_has_rows_that_their_algorithms_take(self, name: str) -> None:
        table = definition.table(name)
        assert table.name == name
        table.check()

    def test_belongs_to_an_algorithm(self, name: str) -> None:
        assert name in registry.algorithms()
        assert readme(name).is_file()

    def test_is_no_benchmark_with_a_target(self, name: str) -> None:
        assert f"rows_{name}" not in {benchmark.name for benchmark in find_benchmarks()}

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["--only", "none such"], "there is no row 'none such'; known: "),
            (["--quick", "--write"], "not with --quick or --only"),
            (["--rounds", "0"], "must be at least 1"),
            (["--seeds", "a"], "--seeds"),
        ],
    )
    def test_is_not_made_of_what_does_not_fit(
        self, name: str, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert complaint in _refusal([name, *arguments], capsys)


def test_an_unknown_table_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no table 'weather'" in _refusal(["weather"], capsys)


def _refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_info:
        main([*arguments, "--data", "nowhere"])
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def test_a_row_whose_algorithm_does_not_take_it_is_refused() -> None:
    trainable = {"kind": "lora"}
    with pytest.raises(ValueError, match="no_such_field"):
        check_row(Row("row", "fedavg", {"no_such_field": 1}, trainable))
    with pytest.raises(ValueError, match="fedavg does not train 'full'"):
        check_row(Row("row", "fedavg", {}, {"kind": "full"}))
    with pytest.raises(ValueError, match="unknown client setting 'no_such_setting'"):
        check_row(Row("row", "fedavg", {}, trainable, ({"no_such_setting": 1},)))


def test_two_rows_of_one_name_are_refused() -> None:
    table = table_of("fedavg")
    with pytest.raises(ValueError, match="two rows with the same name"):
        replace(table, rows=table.rows * 2).check()


def test_a_table_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, base, file = data_folder(tmp_path / "data"), bert_folder(tmp_path / "base"), tmp_path / "runs.jsonl"
    first, second = jobs_of(replace(table_of("fedavg"), seeds=(3, 4)))
    before = job_result(first.row.name, first.task, first.seed, 0.5)
    Results(file).add(replace(before, key=first.key()))
    first_result, second_result = complete([first, second], data, Results(file), base, processes=2)
    assert (first_result.accuracy, second_result.seed) == (0.5, 4)
    assert "1/1 its example, colors, seed 4" in capsys.readouterr().err
    assert complete([first, second], data, Results(file), tmp_path / "no model", processes=1) == [
        first_result,
        second_result,
    ]


def test_a_run_that_fails_is_named(tmp_path: Path) -> None:
    (job,) = jobs_of(table_of("fedavg"))
    site = make_site(data_folder(tmp_path / "data"), job.task, job.seed, job.table, tmp_path / "site")
    with pytest.raises(RunError, match=r"^its example, colors, seed 3: ModelError: .*there is no folder"):
        run_job(job, site, tmp_path / "no model")


class TestAJob:
    def test_is_another_one_when_a_number_of_its_table_or_row_is(self) -> None:
        table = table_of("fedavg")
        longer = replace(table, rounds=2)
        other_config = replace(table, rows=(replace(table.rows[0], config={"learning_rate": 0.5}),))
        keys = {
            jobs_of(other, device)[0].key() for other in (table, longer, other_config) for device in ("cpu", "cuda")
        }
        assert len(keys) == 6

    def test_is_the_same_in_a_longer_table(self) -> None:
        table = table_of("fedavg")
        more = replace(table, seeds=(3, 4), tasks=("colors", "subj"))
        assert jobs_of(table)[0].key() == jobs_of(more)[0].key()
