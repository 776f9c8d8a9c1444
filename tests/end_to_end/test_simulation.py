"""The simulation and the service are one method: the same definition gives the same adapter, bit for bit."""

from pathlib import Path

from federated import registry
from federated.adapter_files import write_adapter
from federated.protocol import Work
from federated.session import TrainingSession
from federated.simulation import SimulatedFederation, run
from tests.support.nodes import DATASET, Consortium
from worker_agent.settings import AgentSettings, load_settings
from worker_agent.training.session import open_session


def simulated(work: Work, sites: list[AgentSettings], folder: Path) -> bytes:
    """The adapter's tensors file."""

    def session(ordinal: int, seed: int) -> TrainingSession:
        return open_session(work, DATASET, sites[ordinal], seed, {})

    federation = SimulatedFederation(
        algorithm=work.algorithm,
        config=registry.make_config(work.algorithm, work.config),
        trainable=work.trainable,
        clients=len(sites),
        rounds=work.rounds,
        seed=work.federation_seed,
    )
    result = run(federation, session)
    write_adapter(folder, result.adapter, work.trainable, session(0, 0).facts, work.base_model.id, {})
    return (folder / "adapter_model.safetensors").read_bytes()


def test_the_simulation_makes_the_services_adapter(two_nodes: Consortium, tmp_path: Path) -> None:
    federation_id = two_nodes.start()
    two_nodes.end(federation_id)
    shown = two_nodes.get(federation_id)
    work = Work.model_validate(shown["definition"] | {"federation_seed": shown["seed"]})
    sites = [load_settings(node.settings) for node in two_nodes.nodes]
    assert simulated(work, sites, tmp_path) == two_nodes.file(federation_id, "adapter_model.safetensors")
