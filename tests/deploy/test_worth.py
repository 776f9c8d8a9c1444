"""What the demo promises: together the organisations learn what none of them can alone.

Runs what the demo compares, with the simulation in place of the service: `tests/end_to_end` shows that both make the
same adapter, bit for bit.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from deploy.quickstart import baselines, tasks
from deploy.quickstart.base_model import minilm
from deploy.quickstart.definition import ROUNDS, definition
from deploy.quickstart.quiet import quiet


def site_of(folder: Path, task: tasks.TextTask, seed: int) -> baselines.Site:
    files = {}
    for name, rows in task.parts.items():
        files[name] = folder / f"{name}.jsonl"
        tasks.write_rows(files[name], rows)
    return baselines.Site(definition(task, "fedavg", ROUNDS, seed), files, minilm(), task.test, folder)


def federated(site: baselines.Site, names: list[str]) -> float:
    return baselines.accuracy(site, baselines.simulated(site, names, site.folder / "federated"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_federation_beats_every_organisation_alone_and_a_bag_of_words(tmp_path: Path, seed: int) -> None:
    task = tasks.support_messages(seed)
    site = site_of(tmp_path, task, seed)
    with ProcessPoolExecutor(2, get_context("spawn"), initializer=quiet) as pool:
        together = pool.submit(federated, site, list(task.parts))
        alone = [pool.submit(baselines.trained_alone, site, name, 1) for name in task.parts]
        best_alone = max(score.result() for score in alone)
    assert together.result() >= best_alone + 0.05
    assert together.result() >= baselines.bag_of_words(task.pooled, task.test) + 0.10
