"""Test of an aggregation's memory: that of one matrix of all clients, for any number of matrices."""

from functools import partial
from pathlib import Path

import torch

from federated.contract import ClientUpdate, RoundFacts
from federated.payloads.payload import LazyTensor, Payload
from federated.registry import make_config, server_half
from federated.trainable import Initialization, Lora, ModelFacts, TensorFacts
from tests.support.memory import peak_memory

CLIENTS, MATRICES, WIDTH, RANK = 50, 16, 4096, 4
ONE_MATRIX_OF_ALL_CLIENTS = CLIENTS * RANK * 2 * WIDTH * 4


def model() -> ModelFacts:
    tensors: list[TensorFacts] = []
    zeros = Initialization(kind="zeros")
    for number in range(MATRICES):
        for factor, shape in (("A", (RANK, WIDTH)), ("B", (WIDTH, RANK))):
            name = f"model.layers.{number:02}.self_attn.q_proj.lora_{factor}.weight"
            tensors.append(TensorFacts(name=name, shape=shape, dtype="F32", initialisation=zeros))
    return ModelFacts(
        model_type="llama",
        task_type="CAUSAL_LM",
        tensors=tuple(tensors),
        layers=MATRICES,
        hidden=WIDTH,
        kv_width=WIDTH,
        weights_digest="sha256:" + "0" * 64,
    )


def test_fifty_clients_take_a_small_part_of_what_their_files_hold(tmp_path: Path) -> None:
    server = server_half("flexlora", make_config("flexlora", {}), Lora(r=RANK))
    server.start(model(), 0, None).write(tmp_path / "state")
    generator = torch.Generator().manual_seed(0)
    for client in range(CLIENTS):
        tensors = {
            tensor.name: LazyTensor(
                torch.float32, tensor.shape, partial(torch.randn, tensor.shape, generator=generator)
            )
            for tensor in model().tensors
        }
        Payload(tensors).write(tmp_path / str(client))
    updates = [ClientUpdate(n, 9, 9.0, Payload.open(tmp_path / str(n)), {}, None) for n in range(CLIENTS)]
    with peak_memory() as memory:
        outcome = server.aggregate(Payload.open(tmp_path / "state"), updates, RoundFacts(1, "train", 5, CLIENTS))
        outcome.state.write(tmp_path / "next")
    assert memory.peak_bytes < 8 * ONE_MATRIX_OF_ALL_CLIENTS < MATRICES * ONE_MATRIX_OF_ALL_CLIENTS
    assert outcome.metrics["energy_kept"] < 1.0
