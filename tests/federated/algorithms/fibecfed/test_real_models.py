"""Over transformers and PEFT: what is measured of a model, and the adapter that PEFT opens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from federated import simulation
from federated.algorithms.fibecfed.config import FibecFedConfig
from federated.algorithms.fibecfed.fisher import factor_maps, fisher_traces, token_counts
from federated.algorithms.fibecfed.layer_choice import shares_after_warm_up
from federated.algorithms.fibecfed.layer_scores import layer_scores
from federated.algorithms.fibecfed.layers import layer_tensors
from federated.export.adapter_files import write_adapter
from federated.maths.per_example import observe, squared_norms
from federated.protocol import Cloze, TaskDefinition
from federated.registry import make_config
from federated.simulation import Result, SimulatedFederation
from federated.trainable import Lora
from tests.support.training import COLORS, REPEAT, data_of, train_some_steps, work_of
from worker_agent.settings import AgentSettings
from worker_agent.training.session import Session, Workbench

QUICK: dict[str, Any] = {"learning_rate": 0.05, "batch_size": 8, "lanczos_steps": 8, "preparation_steps": 3}
CHOICE = TaskDefinition(
    task="sequence_classification",
    labels=("red", "green", "blue"),
    cloze=Cloze(template="{text} . a {mask} .", words=("cat", "dog bird", "dog cat")),
)
MODELS = {"bert": COLORS, "roberta": COLORS, "llama": REPEAT, "choosing-llama": CHOICE}


@pytest.fixture(scope="module")
def node(node: AgentSettings) -> AgentSettings:
    return node.model_copy(update={"models": {**node.models, "choosing-llama": node.models["llama"]}})


def opened(node: AgentSettings, model: str, lora: Lora) -> Session:
    task = MODELS[model]
    return Workbench(node).open(work_of(model, lora, task), data_of(task), 3, {})


def one_at_a_time(session: Session, names: list[str]) -> dict[str, list[float]]:
    """Squared gradient norm of each factor, example by example, by autograd alone."""
    session.train_all_except([name for name in session.trainables if name not in names])
    session.training(False)
    told: dict[str, list[float]] = {name: [] for name in names}
    for batch in session.batches(range(session.examples), 1):
        gradients = torch.autograd.grad(session.loss(batch), [session.trainables[name] for name in names])
        for name, gradient in zip(names, gradients, strict=True):
            told[name].append(float(gradient.square().sum()))
    return told


@pytest.mark.parametrize("model", MODELS)
class TestDifficulty:
    def test_one_pass_with_hooks_is_the_loop_over_single_examples(self, node: AgentSettings, model: str) -> None:
        session = opened(node, model, Lora(r=2, target_modules="all-linear"))
        train_some_steps(session)
        layered = layer_tensors(session.facts)
        names = [name for layer in layered.values() for name in layer]
        by_hand = torch.tensor(list(one_at_a_time(session, names).values())).sum(dim=0)
        order = torch.argsort(token_counts(session, 8)).tolist()
        made = fisher_traces(session, layered, order, 8)
        assert by_hand.min() > 0
        torch.testing.assert_close(made, by_hand, rtol=1e-5, atol=0)

    def test_at_the_start_the_trace_of_a_is_exactly_zero(self, node: AgentSettings, model: str) -> None:
        session = opened(node, model, Lora(r=2))
        names = [name for layer in layer_tensors(session.facts).values() for name in layer]
        traces: dict[str, float] = {}

        def seen(name: str, inputs: Tensor, gradients: Tensor) -> None:
            traces[name] = float(squared_norms(inputs, gradients).sum())

        session.training(False)
        with observe(factor_maps(session, names), seen):
            torch.autograd.backward(session.loss(next(session.batches(range(8), 8)), "sum"))
        assert traces.keys() == set(names)
        assert {traces[name] for name in names if ".lora_A." in name} == {0.0}
        assert all(traces[name] > 0 for name in names if ".lora_B." in name)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("at", ["input", "layer"])
@pytest.mark.parametrize("noise", ["adversarial", "gaussian"])
def test_every_layer_has_a_score_that_does_not_hang_on_what_batches_are_filled_up_with(
    node: AgentSettings, model: str, at: str, noise: str
) -> None:
    session = opened(node, model, Lora(r=2))
    values: Mapping[str, Any] = {"layer_noise": noise, "layer_noise_at": at, "layer_noise_norm": "inf"}
    config = make_config("fibecfed", {**values, "score_batch_size": 16})
    assert isinstance(config, FibecFedConfig)
    layers = list(layer_tensors(session.facts))
    scores = layer_scores(session, config, layers)
    assert scores.shape == (2,)
    assert (scores > 0).all()
    if noise == "adversarial":
        alone = layer_scores(session, config.model_copy(update={"score_batch_size": 1}), layers)
        torch.testing.assert_close(alone, scores, rtol=1e-3, atol=0)


@pytest.mark.parametrize("model", MODELS)
def test_the_hessian_of_a_model_with_fused_attention_is_looked_at(node: AgentSettings, model: str) -> None:
    session = opened(node, model, Lora(r=2))
    names = [name for layer in layer_tensors(session.facts).values() for name in layer]
    config = make_config("fibecfed", QUICK)
    assert isinstance(config, FibecFedConfig)
    shares = shares_after_warm_up(session, config, names)
    assert set(shares) == {"spectrum", "eigengap"}
    assert all(0 <= share <= 1 for share in shares.values())


def federated(node: AgentSettings, model: str, lora: Lora, **changes: Any) -> tuple[Result, Workbench]:
    work, bench = work_of(model, lora, MODELS[model], QUICK | changes), Workbench(node)
    config = make_config("fibecfed", work.config)
    federation = SimulatedFederation("fibecfed", config, lora, 2, 2, seed=work.federation_seed, evaluate_every=1)
    return simulation.run(federation, lambda ordinal, seed: bench.open(work, data_of(work.task), seed, {})), bench


def test_peft_opens_the_global_adapter_of_a_model_with_a_head_of_two_maps(
    node: AgentSettings, tmp_path: Path
) -> None:
    lora = Lora(r=2)
    result, bench = federated(node, "roberta", lora, layer_count="fixed")
    assert result.state.facts["layers"] in ([0], [1])
    assert result.state.facts["frozen"] == ["classifier.dense.bias", "classifier.dense.weight"]
    travelled = [name for name in result.state if "/" not in name]
    assert [name for name in travelled if name.startswith("classifier")] == [
        "classifier.out_proj.bias",
        "classifier.out_proj.weight",
    ]
    session = bench.open(work_of("roberta", lora), "colors", 0, {})
    base = Path(node.models["roberta"])
    write_adapter(tmp_path, result.adapter, lora, session.facts, str(base), {})
    stock = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    loaded = peft.PeftModel.from_pretrained(stock, tmp_path).eval()
    session.load({name: value for name, value in result.adapter.tensors.items() if name in session.trainables})
    batch = next(session.batches(range(5), 5))
    with torch.no_grad():
        expected, found = session.model(**batch.inputs).logits, loaded(**batch.inputs).logits
    assert torch.equal(found, expected)
    assert result.rounds[-1].metrics["own_accuracy"] >= 0


@pytest.mark.parametrize("model", ["bert", "llama", "choosing-llama"])
def test_a_federation_runs_with_the_defaults(node: AgentSettings, model: str) -> None:
    result, _ = federated(node, model, Lora(r=2))
    assert [record.kind for record in result.rounds] == ["prepare", "train", "train"]
    prepared = result.rounds[0].metrics
    assert {"layers", "kept_share", "kept_spectrum", "kept_eigengap"} <= set(prepared)
    assert {"accuracy", "own_accuracy"} <= set(result.rounds[1].metrics) or model == "llama"
    assert result.rounds[1].metrics["admitted_share"] > 0.6
