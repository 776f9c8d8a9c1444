"""Samples for tests of tables: a small table, tiny data and a job result."""

from pathlib import Path

from benchmarks.tables.definition import JobResult, Row, Table
from federated import registry
from tests.support import tiny_models

TASK = "colors"


def table_of(algorithm: str) -> Table:
    """A table of one row, the algorithm's own example, on two clients for one round."""
    entry = registry.algorithm(algorithm)
    row = Row("its example", algorithm, entry.example, entry.example_trainable)
    return Table(name="sample", rows=(row,), rounds=1, tasks=(TASK,), seeds=(3,), clients=2, cohort=2, test_rows=9)


def data_folder(folder: Path, train_rows: int = 96) -> Path:
    """Write one task into a folder."""
    (folder / TASK).mkdir(parents=True)
    tiny_models.write_rows(folder / TASK / "train.jsonl", tiny_models.color_rows(train_rows))
    tiny_models.write_rows(folder / TASK / "test.jsonl", tiny_models.color_rows(12, seed=1))
    return folder


def job_result(row: str, task: str, seed: int, accuracy: float) -> JobResult:
    """A result with round numbers, whose earlier evaluation is worse."""
    metrics = {"accuracy": accuracy, "loss": 0.5, "examples": 9.0, "bytes": 1e6, "seconds": 20.0}
    return JobResult(
        key=f"{row} {task} {seed}",
        row=row,
        task=task,
        seed=seed,
        evaluations={1: {**metrics, "accuracy": 0.0}, 2: metrics},
        download_bytes=16_384.0,
        upload_bytes=1_600.0,
        seconds=30.0 + seed,
    )
