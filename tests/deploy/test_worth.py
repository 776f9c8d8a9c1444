"""What the demo promises: together the organisations learn what none of them can alone.

Runs what the demo compares, with the simulation in place of the service: `tests/end_to_end` shows that both make the
same adapter, bit for bit.
"""

from pathlib import Path

import pytest

from deploy.quickstart import baselines, tasks
from deploy.quickstart.base_model import MODEL_ID, minilm
from deploy.quickstart.definition import HELD_OUT, MAX_LENGTH, ROUNDS, definition
from worker_agent.settings import AgentSettings, DatasetSettings


def settings_for(folder: Path, task: tasks.TextTask) -> AgentSettings:
    datasets = {}
    for name, rows in {**task.parts, "pooled": task.pooled}.items():
        tasks.write_rows(folder / f"{name}.jsonl", rows)
        datasets[name] = DatasetSettings(path=folder / f"{name}.jsonl", held_out=HELD_OUT)
    return AgentSettings(datasets=datasets, models={MODEL_ID: str(minilm())}, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_federation_beats_every_organisation_alone_and_a_bag_of_words(tmp_path: Path, seed: int) -> None:
    task = tasks.support_messages(seed)
    body = definition(task, "fedavg", ROUNDS, seed)
    settings = settings_for(tmp_path, task)

    def accuracy(adapter: Path) -> float:
        return baselines.accuracy(adapter, minilm(), task.labels, task.test, MAX_LENGTH)

    alone = [accuracy(baselines.simulated(body, settings, [name], tmp_path / f"alone-{name}")) for name in task.parts]
    federated = accuracy(baselines.simulated(body, settings, list(task.parts), tmp_path / "federated"))
    assert federated >= max(alone) + 0.05
    assert federated >= baselines.bag_of_words(task.pooled, task.test) + 0.10
