"""Jobs of a table, one for each row, task and seed, run in parallel processes with one torch thread each."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from benchmarks.tables.definition import Job, JobResult, Table
from benchmarks.tables.sites import Site
from examples.quickstart.quiet import quiet

Sites = Mapping[tuple[str, int], Site]


class RunError(RuntimeError):
    """A job that failed. The text names the job and the error."""


def jobs_of(table: Table, device: str = "cpu") -> list[Job]:
    """All jobs. Those on the same split of a task are adjacent, so that a process keeps its examples."""
    cuts = [(task, seed) for seed in table.seeds for task in table.tasks]
    return [Job(table, row, task, seed, device) for task, seed in cuts for row in table.rows]


def run_all(jobs: Iterable[Job], sites: Sites, base: Path, processes: int) -> Iterator[JobResult]:
    """Yield the result of each job as it ends. `base` is the base model's folder.

    After the first failure no further job is started. Raises RunError.
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
    """Run a job in this process and return its result. Raises RunError."""
    # Imported here, as `quiet` must come before the import of the model libraries.
    from benchmarks.tables.federation import run

    try:
        return run(job, site, base)
    except Exception as error:
        # Not every error of the halves and the session can be pickled.
        raise RunError(f"{job}: {type(error).__name__}: {error}") from error
