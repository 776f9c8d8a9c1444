"""Initial adapters: a federation starts from exactly the model with which the earlier one ended."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from federated import simulation
from federated.algorithm_kit.shared_tensors import checked_initial, factor_scale
from federated.contract import FederationRefused
from federated.export.adapter_files import write_adapter
from federated.export.initial_adapter import initial_adapter, scales
from federated.payloads.payload import Payload
from federated.registry import algorithm, make_config
from federated.simulation import Result, SimulatedFederation
from federated.trainable import Lora, ModelFacts, adapter_config
from tests.support.rounds_by_hand import Sample, samples
from tests.support.training import COLORS, work_of
from worker_agent.settings import AgentSettings
from worker_agent.training.session import Workbench

A16 = Lora(r=2, lora_alpha=16)
PATTERNS = Lora(r=2, lora_alpha=16, alpha_pattern={"layer.0.attention.*.query": 3, "value": 64}, lora_dropout=0.1)
BARELY = {"local_steps": 1, "batch_size": 1, "learning_rate": 1e-9}


def ran(
    bench: Workbench, name: str, trainable: Lora, config: dict[str, Any], initial: Payload | None = None
) -> Result:
    work = work_of("bert", trainable, COLORS, config)
    federation = SimulatedFederation(
        name, make_config(name, config), trainable, 2, 1, seed=7, evaluate_every=1, initial=initial
    )
    return simulation.run(federation, lambda ordinal, seed: bench.open(work, "colors", seed, {}))


def facts_of(bench: Workbench, trainable: Lora) -> ModelFacts:
    return bench.open(work_of("bert", trainable, COLORS), "colors", 0, {}).facts


@pytest.mark.parametrize(
    ("first", "then", "name"),
    [
        ((A16, "fedavg", {}), Lora(r=2, lora_alpha=64), "fedavg"),
        ((A16, "fedavg", {}), Lora(r=2, lora_alpha=16, use_rslora=True), "fibecfed"),
        ((A16, "fedavg", {}), PATTERNS, "fedavg"),
        ((PATTERNS, "fedavg", {}), Lora(r=2, lora_alpha=8), "flexlora"),
        ((A16, "flexlora", {"rank": "full"}), A16, "fedavg"),
    ],
    ids=["alpha", "rslora", "to patterns", "from patterns to ranks of one's own", "from ranks of one's own"],
)
def test_the_first_evaluation_is_the_last_one_of_the_adapter(
    node: AgentSettings, tmp_path: Path, first: tuple[Lora, str, dict[str, Any]], then: Lora, name: str
) -> None:
    bench, (trainable, began_with, settings) = Workbench(node), first
    learned = {"local_steps": 6, "batch_size": 8, "learning_rate": 0.02, **settings}
    ended = ran(bench, began_with, trainable, learned)
    tensors, config, _ = write_adapter(tmp_path, ended.adapter, trainable, facts_of(bench, trainable), "bert", {})
    initial = initial_adapter(Payload.open(tensors), json.loads(config.read_text()), facts_of(bench, then), then)
    more = {"rank": "full"} if name == "flexlora" else {}
    going_on = ran(bench, name, then, {**BARELY, **more}, initial)
    wanted, found = ended.rounds[-1].metrics, going_on.rounds[-1].metrics
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert found["accuracy"] == wanted["accuracy"]
    untrained = ran(bench, "fedavg", A16, BARELY).rounds[-1].metrics["loss"]
    assert abs(untrained - wanted["loss"]) > 1e-3


def test_an_equal_scale_changes_no_bit() -> None:
    b = torch.tensor([[1.1], [0.7]])
    model = _one_matrix()
    given = Payload({"m.lora_B.weight": b}, {"scales": {"m": factor_scale(A16, "m")}})
    assert torch.equal(checked_initial(model, given, partial(factor_scale, A16))["m.lora_B.weight"], b)


def test_the_ends_of_names_count_in_their_order_as_in_peft() -> None:
    config = {
        "r": 4, "lora_alpha": 8, "use_rslora": True,
        "rank_pattern": {"a.b": 16}, "alpha_pattern": {"x.a.b": 2, "b": 3},
    }  # fmt: skip
    assert scales(config, {"x.a.b", "y.a.b", "c.b", "cb"}) == {"x.a.b": 0.5, "y.a.b": 0.75, "c.b": 1.5, "cb": 4.0}


@pytest.mark.parametrize("config", [None, {"r": 2, "lora_alpha": 2, "rank_pattern": {".*(q|v)": 4}}])
def test_a_scale_that_cannot_be_known_is_refused(config: dict[str, Any] | None) -> None:
    with pytest.raises(FederationRefused, match="initial adapter"):
        scales(config, {"m"})


@pytest.mark.parametrize(
    "sample",
    [one for one in samples() if isinstance(one.trainable, Lora) and algorithm(one.algorithm).goes_on],
    ids=lambda sample: sample.algorithm,
)
def test_every_algorithm_that_goes_on_begins_with_the_product_of_an_adapter_of_another_scale(sample: Sample) -> None:
    facts, trainable = sample.federation.open(0, 0).facts, sample.trainable
    assert isinstance(trainable, Lora)
    generator = torch.Generator().manual_seed(1)
    named = [tensor for tensor in facts.tensors if ".lora_" in tensor.name]
    tensors = {tensor.name: torch.randn(tensor.shape, generator=generator) for tensor in named}
    for name in tensors:  # of rank one, so that an export at a low rank loses nothing
        if ".lora_B." in name:
            tensors[name][:, 1:] = 0
    begun = sample.server.start(facts, 0, Payload(tensors, {"scales": dict.fromkeys(facts.adapted_modules, 3.0)}))
    exported = sample.server.export(begun)
    config = adapter_config(trainable, facts, "tiny") | dict(exported.config)
    for module, scale in scales(config, set(facts.adapted_modules)).items():
        a, b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        torch.testing.assert_close(
            scale * exported.tensors[b] @ exported.tensors[a], 3.0 * tensors[b] @ tensors[a], rtol=1e-4, atol=1e-5
        )


def _one_matrix() -> ModelFacts:
    def tensor(name: str, shape: list[int]) -> dict[str, Any]:
        return {"name": name, "shape": shape, "dtype": "F32", "initialisation": {"kind": "zeros"}}

    return ModelFacts.model_validate(
        {
            "model_type": "bert", "task_type": "SEQ_CLS", "layers": 1, "hidden": 2, "kv_width": 2,
            "tensors": [tensor("m.lora_A.weight", [1, 2]), tensor("m.lora_B.weight", [2, 1])],
            "weights_digest": "sha256:" + "0" * 64,
        }
    )  # fmt: skip
