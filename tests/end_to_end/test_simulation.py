"""The simulation and the service are one method: the same definition gives the same numbers, bit for bit."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from federated import registry
from federated.export.adapter_files import write_adapter
from federated.protocol import Work
from federated.session import TrainingSession
from federated.simulation import Result, SimulatedFederation, run
from tests.support.nodes import DATASET, Consortium
from worker_agent.settings import AgentSettings
from worker_agent.training.session import SessionFactory

pytestmark = pytest.mark.once

PERSONAL = sorted(name for name, algorithm in registry.algorithms().items() if algorithm.personal)
# With all that can stand before the first round: scores, the Hessian, and rounds that warm up.
PREPARED = {"layer_count": "spectrum"}


def simulated(work: Work, sites: list[AgentSettings], folder: Path, evaluate_every: int | None = None) -> Result:
    """How the federation ends; the adapter's files lie in `folder`. On as many threads as the workers train on."""
    torch.set_num_threads(sites[0].training_threads)
    benches = [SessionFactory(site) for site in sites]

    def session(ordinal: int, seed: int) -> TrainingSession:
        return benches[ordinal].open(work, DATASET, seed, {})

    federation = SimulatedFederation(
        algorithm=work.algorithm,
        config=registry.make_config(work.algorithm, work.config),
        trainable=work.trainable,
        clients=len(sites),
        rounds=work.rounds,
        seed=work.federation_seed,
        evaluate_every=evaluate_every,
    )
    result = run(federation, session)
    write_adapter(folder, result.adapter, work.trainable, session(0, 0).facts, work.base_model.id, {})
    return result


def definition_of(algorithm: str) -> dict[str, Any]:
    """Two quick rounds of an algorithm with private parts."""
    samples: Any = importlib.import_module(f"tests.federated.algorithms.{algorithm}.samples")
    return {
        "name": algorithm,
        "algorithm": algorithm,
        "config": {**samples.CONFIGS[0], **PREPARED},
        "trainable": registry.algorithm(algorithm).example_trainable,
        "rounds": 2,
        "evaluation": {"every": 1, "who": "all"},
    }


@pytest.mark.parametrize("algorithm", ["fedavg", *PERSONAL])
def test_the_simulation_makes_the_services_adapter(two_nodes: Consortium, tmp_path: Path, algorithm: str) -> None:
    changes = {} if algorithm == "fedavg" else definition_of(algorithm)
    federation_id = two_nodes.start(**changes)
    two_nodes.end(federation_id)
    shown = two_nodes.get(federation_id)
    work = Work.model_validate(shown["definition"] | {"federation_seed": shown["seed"]})
    sites = two_nodes.sites()
    made = simulated(work, sites, tmp_path, shown["definition"]["evaluation"]["every"])
    served = two_nodes.file(federation_id, "adapter_model.safetensors")
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == served
    rounds = two_nodes.get(federation_id, "rounds")["items"]
    assert [record.kind for record in made.rounds] == [row["kind"] for row in rounds]
    for record, row in zip(made.rounds, rounds, strict=True):
        told = {name: value for name, value in record.metrics.items() if not name.endswith("examples")}
        assert {name: row["metrics"][name] for name in told} == told
