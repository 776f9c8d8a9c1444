"""Two real workers train at ranks of their own: one asked for it, the other has what its free memory allows."""

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from federated import registry
from federated.export.adapter_files import write_adapter
from federated.protocol import Work
from federated.session import TrainingSession
from federated.simulation import SimulatedFederation, run
from tests.support.nodes import DATASET, LABELS, Consortium
from worker_agent.training.session import open_session

pytestmark = pytest.mark.once

ADAPTER = "adapter_model.safetensors"
HIGHEST, ASKED, AFFORDED = 4, 1, 3
# Of the four matrices 16 x 16 that are adapted: numbers for each rank, 16 bytes each in training.
RANK_BYTES = 4 * (16 + 16) * 16


def ended(nodes: Consortium, free_bytes: int) -> str:
    """A federation whose second client affords three ranks and a half of so much memory."""
    config = {"local_steps": 4, "batch_size": 8, "learning_rate": 0.02, "rank": "auto"}
    federation_id = nodes.start(
        settings={"north": {"rank": ASKED}},
        algorithm="flexlora",
        config=config | {"auto_memory_share": (AFFORDED + 0.5) * RANK_BYTES / free_bytes},
        trainable={"kind": "lora", "r": HIGHEST, "lora_alpha": 8},
        rounds=2,
    )
    nodes.end(federation_id)
    return federation_id


def simulated(nodes: Consortium, federation_id: str, south: dict[str, Any], folder: Path) -> bytes:
    """The adapter's tensors file of the same federation in this process."""
    shown = nodes.get(federation_id)
    work = Work.model_validate(shown["definition"] | {"federation_seed": shown["seed"]})
    sites = nodes.sites()
    torch.set_num_threads(sites[0].training_threads)

    def session(ordinal: int, seed: int) -> TrainingSession:
        return open_session(work, DATASET, sites[ordinal], seed, {})

    federation = SimulatedFederation(
        algorithm=work.algorithm,
        config=registry.make_config(work.algorithm, work.config),
        trainable=work.trainable,
        clients=len(sites),
        rounds=work.rounds,
        seed=work.federation_seed,
        settings={0: {"rank": ASKED}},
        capabilities={1: south},
    )
    adapter = run(federation, session).adapter
    write_adapter(folder, adapter, work.trainable, session(0, 0).facts, work.base_model.id, {})
    return (folder / ADAPTER).read_bytes()


def test_each_sends_its_own_rank_and_peft_opens_the_adapter_that_the_simulation_makes(
    two_nodes: Consortium, tmp_path: Path
) -> None:
    south = two_nodes.capabilities(two_nodes.nodes[1])
    assert south["free_memory_bytes"] < south["memory_bytes"]
    federation_id = ended(two_nodes, south["free_memory_bytes"])
    for number in (1, 2):
        for ordinal, rank in ((0, ASKED), (1, AFFORDED)):
            update = two_nodes.update(federation_id, number, ordinal)
            shapes = [update.shape(name) for name in update if ".lora_" in name]
            assert len(shapes) == 8
            assert set(shapes) == {(rank, 16), (16, rank)}
        metrics = two_nodes.get(federation_id, "rounds", str(number))["metrics"]
        assert (metrics["rank_min"], metrics["rank_max"]) == (ASKED, AFFORDED)
    made = simulated(two_nodes, federation_id, south, tmp_path / "simulated")
    assert made == two_nodes.file(federation_id, ADAPTER)
    answer = two_nodes.owner.http.get(f"/v1/federations/{federation_id}/adapter")
    zipfile.ZipFile(io.BytesIO(answer.content)).extractall(tmp_path / "downloaded")
    base = AutoModelForSequenceClassification.from_pretrained(two_nodes.model, num_labels=len(LABELS))
    opened = PeftModel.from_pretrained(base, tmp_path / "downloaded")
    factors = {name: value for name, value in opened.named_parameters() if "lora_B" in name}
    assert {value.shape for value in factors.values()} == {(16, HIGHEST)}
    assert all(value.any() for value in factors.values())
