"""Tests of whole federations in one process against plain averaging."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from federated import simulation
from federated.registry import make_config
from federated.simulation import Result, SimulatedFederation
from federated.trainable import Prefix
from tests.support.tiny_model import LAYERS
from tests.support.tiny_session import TinyFederation

PREFIX = Prefix(num_virtual_tokens=2)
LOCAL: Mapping[str, Any] = {
    "local_epochs": 2,
    "batch_size": 4,
    "learning_rate": 0.05,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
}
SIZES = {0: 8, 1: 12, 2: 9, 3: 12}


def ran(algorithm: str, settings: Mapping[str, Any], trainable: Prefix = PREFIX, **changes: Any) -> Result:
    options: dict[str, Any] = {"clients": 4, "rounds": 3, "seed": 5, "evaluate_every": 1} | changes
    clients = TinyFederation(trainable=trainable, seed=options["seed"], examples_of=SIZES)
    config = make_config(algorithm, {**LOCAL, **settings})
    return simulation.run(SimulatedFederation(algorithm, config, trainable, **options), clients.open)


@pytest.mark.parametrize("clients_per_round", [None, 2])
def test_all_layers_without_the_servers_step_are_averaged_prefix_tuning_bit_for_bit(
    clients_per_round: int | None,
) -> None:
    plain = ran("fedavg", {}, clients_per_round=clients_per_round)
    ours = ran("fedpeptao", {"layer_share": 1.0, "server_lr": 0.0}, clients_per_round=clients_per_round)
    assert ours.adapter.tensors.keys() == plain.adapter.tensors.keys()
    assert all(torch.equal(ours.adapter.tensors[name], plain.adapter.tensors[name]) for name in plain.adapter.tensors)
    train_rounds = [record for record in ours.rounds if record.kind == "train"]
    for record, beside in zip(train_rounds, plain.rounds, strict=True):
        assert record.metrics["loss"] == record.metrics["own_loss"] == beside.metrics["loss"]


def test_a_federation_prepares_once_and_learns() -> None:
    result = ran("fedpeptao", {}, rounds=6)
    assert [record.kind for record in result.rounds] == ["prepare"] + ["train"] * 6
    losses = [record.metrics["loss"] for record in result.rounds[1:]]
    own = [record.metrics["own_loss"] for record in result.rounds[1:]]
    assert losses[-1] < losses[0]
    assert own[-1] < own[0]
    assert losses[-1] != own[-1]


def test_the_export_holds_the_common_start_where_a_layer_does_not_travel() -> None:
    result = ran("fedpeptao", {"layer_share": 0.3})
    session = TinyFederation(trainable=PREFIX, seed=5).open(0, 0)
    (layer,) = result.state.facts["travelling"]
    ours = result.adapter.tensors["prompt_embeddings"].chunk(LAYERS, dim=1)
    start = session.start("prompt_embeddings").chunk(LAYERS, dim=1)
    assert [torch.equal(a, b) for a, b in zip(ours, start, strict=True)] == [n != layer for n in range(LAYERS)]


def test_twice_the_same_federation_ends_with_the_same_bytes() -> None:
    dropping = Prefix(num_virtual_tokens=2, dropout=0.1)
    runs = [ran("fedpeptao", {}, dropping, clients_per_round=2).state.encode() for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("setting", [
    {"server_mode": "chained"}, {"server_grad": "delta"}, {"cv_update": "avg_grad"}, {"control_variates": False},
    {"server_lr": 0.0}, {"server_beta": 0.5}, {"skip_last": True, "layer_share": 1.0},
])  # fmt: skip
def test_every_option_changes_the_adapter(setting: dict[str, Any]) -> None:
    plain = ran("fedpeptao", {"layer_share": setting.get("layer_share", 0.5)})
    other = ran("fedpeptao", setting)
    name = "prompt_embeddings"
    assert not torch.equal(plain.adapter.tensors[name], other.adapter.tensors[name])
