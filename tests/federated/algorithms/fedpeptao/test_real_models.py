"""Tests of FedPepTAO over transformers and PEFT: encoders with a head, cloze encoders, and decoders."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from federated import simulation
from federated.contract import ClientFacts, RoundFacts
from federated.export.adapter_files import write_adapter
from federated.protocol import Cloze, TaskDefinition, Work
from federated.registry import client_half, make_config, server_half
from federated.simulation import Result, SimulatedFederation
from federated.trainable import Prefix
from tests.support import masked_language
from tests.support.training import COLORS, REPEAT, data_of, logits, work_of
from worker_agent.settings import AgentSettings
from worker_agent.training.session import SessionFactory

PREFIX = Prefix(num_virtual_tokens=3)
GAP = TaskDefinition(
    task="sequence_classification",
    labels=("red", "green", "blue"),
    cloze=Cloze(template="{text} . a {mask} .", words=("cat", "dog", "bird")),
)
SETTINGS: dict[str, Any] = {"batch_size": 8, "learning_rate": 0.05, "local_epochs": 1.0}
KINDS: dict[str, Any] = {
    "bert": (COLORS, AutoModelForSequenceClassification, {"num_labels": 3}),
    "roberta": (COLORS, AutoModelForSequenceClassification, {"num_labels": 3}),
    "llama": (REPEAT, AutoModelForCausalLM, {}),
    "gap-llama": (GAP, AutoModelForCausalLM, {}),
    "masked-bert": (GAP, AutoModelForMaskedLM, {}),
    "masked-roberta": (GAP, AutoModelForMaskedLM, {}),
}


@pytest.fixture(scope="module")
def node(node: AgentSettings, tmp_path_factory: pytest.TempPathFactory) -> AgentSettings:
    folder = tmp_path_factory.mktemp("masked")
    models = {
        "gap-llama": node.models["llama"],
        "masked-bert": str(masked_language.masked_bert_folder(folder / "masked-bert")),
        "masked-roberta": str(masked_language.masked_roberta_folder(folder / "masked-roberta")),
    }
    return node.model_copy(update={"models": {**node.models, **models}})


def run_federation(bench: SessionFactory, work: Work, **settings: Any) -> Result:
    config = make_config("fedpeptao", SETTINGS | settings)
    federation = SimulatedFederation("fedpeptao", config, PREFIX, 2, 2, seed=work.federation_seed, evaluate_every=1)
    return simulation.run(federation, lambda ordinal, seed: bench.open(work, data_of(work.task), seed, {}))


@pytest.mark.parametrize("model", KINDS)
def test_peft_opens_the_adapter_as_the_model_of_the_shared_view(
    node: AgentSettings, tmp_path: Path, model: str
) -> None:
    task, kind, options = KINDS[model]
    work, bench = work_of(model, PREFIX, task), SessionFactory(node)
    result = run_federation(bench, work)
    config = make_config("fedpeptao", SETTINGS)
    session = bench.open(work, data_of(work.task), 0, {})
    client = ClientFacts(1, "one", session.examples, {}, {}, None, 0)
    instruction = server_half("fedpeptao", config, PREFIX).plan(
        result.state, [client], RoundFacts(3, "evaluate", 2, 2)
    )[1]
    client_half("fedpeptao", config, PREFIX).apply(instruction, session, None, "shared")
    base = node.models[model]
    write_adapter(tmp_path, result.adapter, PREFIX, session.facts, base, {})
    with torch.random.fork_rng():
        again = peft.PeftModel.from_pretrained(kind.from_pretrained(base, **options), tmp_path)
    assert torch.equal(logits(again), logits(session.model))


@pytest.mark.parametrize("model", KINDS)
def test_one_of_two_layers_travels_with_its_keys_and_values(node: AgentSettings, model: str) -> None:
    work, bench = work_of(model, PREFIX, KINDS[model][0]), SessionFactory(node)
    facts = bench.open(work, data_of(work.task), 0, {}).facts
    result = run_federation(bench, work)
    (layer,) = result.state.facts["travelling"]
    assert result.state.shape(f"prompt_embeddings/layer.{layer}") == (3, 2 * facts.kv_width)
    metrics = result.rounds[-1].metrics
    assert metrics["own_loss"] != metrics["loss"]


def test_of_a_head_of_two_layers_the_last_linear_alone_is_trained(node: AgentSettings) -> None:
    work, bench = work_of("roberta", PREFIX), SessionFactory(node)
    result = run_federation(bench, work)
    assert result.state.facts["head"] == ["classifier.out_proj.bias", "classifier.out_proj.weight"]
    assert set(result.state.facts["frozen"]) == {"classifier.dense.bias", "classifier.dense.weight"}
    dense = bench.open(work, "colors", 0, {}).start("classifier.dense.weight")
    assert torch.equal(result.adapter.tensors["classifier.dense.weight"], dense)


@pytest.mark.parametrize("model", ["bert", "llama", "gap-llama", "masked-bert"])
@pytest.mark.parametrize("way", ["spectrum", "eigengap"])
def test_the_hessian_of_a_transformer_chooses_the_number_of_layers(node: AgentSettings, model: str, way: str) -> None:
    result = run_federation(SessionFactory(node), work_of(model, PREFIX, KINDS[model][0]), layer_count=way)
    assert [record.kind for record in result.rounds] == ["prepare", "prepare", "train", "train"]
    preparation = result.rounds[1].metrics
    assert preparation["layers_travelling"] == 1
    assert 0 <= preparation["spectrum_share"] <= 1


def test_masked_layers_are_trained_around(node: AgentSettings) -> None:
    result = run_federation(SessionFactory(node), work_of("bert", PREFIX), other_layers="masked")
    evaluation = result.rounds[-1].metrics
    assert evaluation["own_loss"] == evaluation["loss"]
    plain = run_federation(SessionFactory(node), work_of("bert", PREFIX))
    assert evaluation["loss"] != plain.rounds[-1].metrics["loss"]
