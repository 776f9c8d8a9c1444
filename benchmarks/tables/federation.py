"""Execution of a job: a simulated federation over the training sessions of the worker agent."""

import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.tables.definition import Job, JobResult
from benchmarks.tables.sites import Site
from examples.quickstart.definition import MAX_LENGTH
from federated import registry, simulation
from federated.protocol import BaseModelReference, TaskDefinition, Work
from federated.session import TrainingSession
from federated.simulation import Result, RoundRecord, SimulatedFederation
from worker_agent.settings import AgentSettings
from worker_agent.training.session import SessionFactory

BASE = "base"
_METRICS = ("accuracy", "own_accuracy", "loss", "examples")


def run(job: Job, site: Site, base: Path) -> JobResult:
    """Run the federation of the job, with evaluation on the test set of its task."""
    start = time.process_time()
    result = simulate(job, site, base)
    messages = sum(len(record.cohort) for record in result.rounds)
    return JobResult(
        key=job.key(),
        row=job.row.name,
        task=job.task,
        seed=job.seed,
        evaluations=dict(_evaluations(result.rounds)),
        download_bytes=sum(record.download_bytes for record in result.rounds) / messages,
        upload_bytes=sum(record.upload_bytes for record in result.rounds) / messages,
        seconds=time.process_time() - start,
    )


def simulate(job: Job, site: Site, base: Path) -> Result:
    """Simulate the federation of a job. Models and examples are cached for the next job of this process."""
    table, row, work = job.table, job.row, _work(job, site)
    workbench = _workbench(site, base, job.device)

    def session(ordinal: int, seed: int) -> TrainingSession:
        return workbench.open(work, site.dataset(ordinal), seed, row.settings_of(ordinal))

    federation = SimulatedFederation(
        algorithm=row.algorithm,
        config=registry.make_config(row.algorithm, row.config),
        trainable=work.trainable,
        clients=table.clients,
        clients_per_round=table.cohort,
        rounds=table.rounds,
        seed=job.seed,
        settings={ordinal: row.settings_of(ordinal) for ordinal in range(table.clients)},
        evaluate_every=table.evaluate_every or table.rounds,
    )
    return simulation.run(federation, session)


def _work(job: Job, site: Site) -> Work:
    row = job.row
    return Work.model_validate(
        {
            "task": TaskDefinition(
                task="sequence_classification", labels=site.labels, max_length=MAX_LENGTH, metrics=("accuracy",)
            ),
            "base_model": BaseModelReference(id=BASE),
            "trainable": dict(row.trainable),
            "algorithm": row.algorithm,
            "algorithm_revision": registry.algorithm(row.algorithm).revision,
            "config": dict(row.config),
            "federation_seed": job.seed,
            "rounds": job.table.rounds,
        }
    )


@functools.lru_cache(maxsize=1)
def _workbench(site: Site, base: Path, device: str) -> SessionFactory:
    settings = AgentSettings(datasets=site.datasets(), models={BASE: str(base)}, device=device)
    return SessionFactory(settings, kept_datasets=site.clients)


def _evaluations(rounds: Sequence[RoundRecord]) -> Iterator[tuple[int, dict[str, float]]]:
    cost = {"bytes": 0.0, "seconds": 0.0}
    for record in rounds:
        cost["bytes"] += record.download_bytes + record.upload_bytes
        cost["seconds"] += record.seconds
        # Without an evaluation the loss would be that of training.
        if record.kind == "train" and "examples" in record.metrics:
            yield record.number, {name: record.metrics[name] for name in _METRICS if name in record.metrics} | cost
