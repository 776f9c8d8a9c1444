"""The runs of a table: one for each row, task and seed; several at once, each in a process with one torch thread."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from benchmarks.tables.definition import Job, JobResult, Table
from benchmarks.tables.sites import Site
from examples.quickstart.quiet import quiet

Sites = Mapping[tuple[str, int], Site]


class RunError(RuntimeError):
    """A federation that did not come to its end; the text names it and says why."""


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
