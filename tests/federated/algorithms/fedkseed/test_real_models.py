"""Tests of directions on real models: they depend on a tensor's canonical name only, with PEFT and in any format."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from federated.contract import AnyTrainable, ClientFacts, RoundFacts
from federated.maths.directions import directions
from federated.payloads.payload import Payload
from federated.registry import client_half, make_config, server_half
from federated.trainable import Full, Lora
from tests.support import tiny_models
from tests.support.training import FEDERATION_SEED, work_of
from worker_agent.settings import AgentSettings
from worker_agent.training.session import SessionFactory

COUNT, INDEX = 128, 77
HEAD = {"classifier.weight", "classifier.bias"}
FACTOR = "bert.encoder.layer.0.attention.self.query.lora_A.weight"


def weights_of(node: AgentSettings, trainable: AnyTrainable) -> dict[str, Tensor]:
    """Signs of how each trained tensor of a real model was moved along one direction."""
    config = make_config("fedkseed", {"candidates": COUNT})
    session = SessionFactory(node).open(work_of("bert", trainable), "colors", 5, {})
    begin = {name: value.detach().clone() for name, value in session.trainables.items()}
    server = server_half("fedkseed", config, trainable)
    state = server.start(session.facts, FEDERATION_SEED, None)
    state = Payload({"accumulators": torch.eye(COUNT, dtype=torch.float64)[INDEX]}, state.facts)
    client = ClientFacts(0, "one", session.examples, {}, {}, None, 0)
    instruction = server.plan(state, [client], RoundFacts(1, "evaluate", 1, 1))[0]
    client_half("fedkseed", config, trainable).apply(instruction, session, None, "shared")
    return {name: torch.sign(begin[name] - value.detach()) for name, value in session.trainables.items()}


def in_bfloat16(node: AgentSettings, folder: Path) -> AgentSettings:
    """The node with its encoder stored in, and its products made in, bfloat16."""
    base = tiny_models.bert_folder(folder)
    tensors = {name: value.bfloat16() for name, value in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    return node.model_copy(update={"models": {"bert": str(base)}, "dtype": "bfloat16"})


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(
    "trainable", [Full(), Full(names=("classifier.*",)), Lora(r=2)], ids=["full", "head", "lora"]
)
def test_a_tensor_moves_along_the_direction_of_its_name(
    node: AgentSettings, tmp_path: Path, trainable: Any, bfloat16: bool
) -> None:
    actual = weights_of(in_bfloat16(node, tmp_path / "base") if bfloat16 else node, trainable)
    assert actual.keys() >= HEAD
    assert (FACTOR in actual) == (trainable.kind == "lora")
    kinds = directions("hadamard", FEDERATION_SEED, COUNT)
    for name, signs in actual.items():
        alone = kinds.over({name: signs.numel()}, torch.device("cpu")).direction(INDEX).values(name)
        assert torch.equal(signs.view(-1), alone)
