"""Tests of the refusal of models whose layers cannot be told apart."""

from pathlib import Path

import pytest
import torch
from transformers import AlbertConfig, AlbertForSequenceClassification

from federated.algorithm_kit.model_layers import layers_of
from federated.contract import AnyTrainable, JobDeclined
from federated.payloads.payload import Payload
from federated.registry import client_half, make_config
from federated.trainable import Lora, Prefix
from tests.support import tiny_models
from tests.support.tiny_session import TinyFederation
from tests.support.training import first_instruction, work_of
from worker_agent.settings import AgentSettings
from worker_agent.training.session import SessionFactory


def albert_folder(folder: Path) -> Path:
    """A model of two layers that are one module, used twice."""
    tiny_models.bert_folder(folder)
    with torch.random.fork_rng():
        model = AlbertForSequenceClassification(AlbertConfig(**tiny_models.SMALL, embedding_size=8))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("algorithm", "trainable"),
    [("fibecfed", Lora(r=2, target_modules=("query",))), ("fedpeptao", Prefix(num_virtual_tokens=2))],
)
def test_layers_that_are_one_module_are_declined_with_the_modules_seen(
    node: AgentSettings, tmp_path: Path, algorithm: str, trainable: AnyTrainable
) -> None:
    settings = node.model_copy(update={"models": {"albert": str(albert_folder(tmp_path))}})
    work = work_of("albert", trainable).model_copy(update={"algorithm": algorithm})
    session = SessionFactory(settings).open(work, "colors", 3, {})
    told = Payload.decode(first_instruction(work, session.facts).encode())
    half = client_half(algorithm, make_config(algorithm, {}), trainable)
    with pytest.raises(JobDeclined, match=r"this albert cannot be told apart.*albert_layer_groups \(1\)") as caught:
        half.run(told, session, None)
    assert caught.value.code == "layers_unknown"


def test_the_modules_of_the_layers_asked_for_are_given_in_their_order() -> None:
    session = TinyFederation(trainable=Lora(r=2)).open(0, 0)
    assert layers_of(session, [2, 0]) == [session.layers()[2], session.layers()[0]]


def test_fewer_layers_than_the_facts_say_are_named_with_how_many_were_expected() -> None:
    session = TinyFederation(trainable=Lora(r=2)).open(0, 0)
    with pytest.raises(JobDeclined, match=r"layers_unknown.*8 are expected; lists of modules are: layers \(3\)"):
        layers_of(session, [0, 7])
