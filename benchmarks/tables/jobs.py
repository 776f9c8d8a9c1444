"""The runs of a table: one for each row, task and seed; several at once, each in a process with one torch thread."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.tables.definition import Row, Table
from benchmarks.tables.sites import Site
from examples.quickstart.quiet import quiet

_SHARED = (
    "rounds",
    "clients",
    "cohort",
    "alpha",
    "sizes",
    "train_rows",
    "test_rows",
    "test_shares",
    "evaluate_every",
)

Sites = Mapping[tuple[str, int], Site]


class RunError(RuntimeError):
    """A federation that did not come to its end; the text names it and says why."""


@dataclass(frozen=True)
class Job:
    """One federation to run."""

    table: Table
    row: Row
    task: str
    seed: int
    device: str

    def key(self) -> str:
        """Names what is run by its content: another number in the row or the table is another job."""
        content: dict[str, Any] = {name: getattr(self.table, name) for name in _SHARED}
        content |= {"row": asdict(self.row), "task": self.task, "seed": self.seed, "device": self.device}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.row.name}, {self.task}, seed {self.seed}"


@dataclass(frozen=True)
class JobResult:
    """What came of a job. Bytes are of whole messages, the mean over clients and rounds.

    `evaluations`: round -> metrics on the test set; the last round's are the result. Beside the accuracy stand the
    `own_accuracy`, if clients have parts of their own, and the `bytes` (of all messages) and `seconds` (of everybody,
    without evaluation) that it took from the start. `seconds` are the processor's: they do not depend on what else
    runs.
    """

    key: str
    row: str
    task: str
    seed: int
    evaluations: dict[int, dict[str, float]]
    download_bytes: float
    upload_bytes: float
    seconds: float

    @property
    def accuracy(self) -> float:
        return self.last["accuracy"]

    @property
    def last(self) -> dict[str, float]:
        return self.evaluations[max(self.evaluations)]

    def first_evaluation_at(self, accuracy: float) -> dict[str, float] | None:
        """The first evaluation with this accuracy, if there is one."""
        return next((evaluation for _, evaluation in sorted(self.evaluations.items()) if evaluation["accuracy"] >= accuracy), None)


def jobs_of(table: Table, device: str = "cpu") -> list[Job]:
    """All runs; those on the same cut of a task follow each other, so that a process keeps its examples."""
    cuts = [(task, seed) for seed in table.seeds for task in table.tasks]
    return [Job(table, row, task, seed, device) for task, seed in cuts for row in table.rows]


def run_all(jobs: Iterable[Job], sites: Sites, base: Path, processes: int) -> Iterator[JobResult]:
    """What came of each job, as it ends; `base` is the base model's folder.

    The first job that fails ends the rest, but those that run already. Raises RunFailed.
    """
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=quiet) as pool:
        running = [pool.submit(run_job, job, sites[job.task, job.seed], base) for job in jobs]
        try:
            for future in as_completed(running):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def run_job(job: Job, site: Site, base: Path) -> JobResult:
    """What came of a job, run here. Raises RunFailed."""
    # Here, so that the process is quiet before the model libraries are loaded.
    from benchmarks.tables.federation import run

    try:
        return run(job, site, base)
    except Exception as error:
        # Not every error of the halves and the session can pass from one process to another.
        raise RunError(f"{job}: {type(error).__name__}: {error}") from error
