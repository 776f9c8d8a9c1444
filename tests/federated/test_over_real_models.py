"""Federations over transformers and PEFT: the exported adapter is the model that the clients evaluated."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from federated import simulation
from federated.export.adapter_files import write_adapter
from federated.merge import merge
from federated.protocol import Work
from federated.registry import make_config
from federated.simulation import Result, SimulatedFederation
from federated.trainable import Lora, Prefix
from tests.support.training import COLORS, REPEAT, data_of, evaluated_logits, logits, work_of
from worker_agent.settings import AgentSettings
from worker_agent.training.session import SessionFactory


def federated(node: AgentSettings, work: Work, bench: SessionFactory) -> Result:
    settings = {"learning_rate": 0.05, "batch_size": 8, **work.config}
    federation = SimulatedFederation(
        "fedavg", make_config("fedavg", settings), work.trainable, 2, 2, seed=work.federation_seed
    )
    return simulation.run(federation, lambda ordinal, seed: bench.open(work, data_of(work.task), seed, {}))


@pytest.mark.parametrize(
    ("model", "trainable", "config"),
    [
        ("bert", Lora(r=2, bias="all"), {}),
        ("bert-without-pooler", Lora(r=2), {"freeze_a": True}),
        ("roberta", Lora(r=2, use_rslora=True), {"server_optimizer": "adam", "server_learning_rate": 0.05}),
        ("llama", Lora(r=2, target_modules="all-linear"), {"upload_dtype": "bfloat16"}),
        ("bert", Prefix(num_virtual_tokens=3), {}),
        ("llama", Prefix(num_virtual_tokens=3), {"proximal_mu": 0.1}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_peft_opens_the_adapter_as_the_model_that_was_trained(
    node: AgentSettings, tmp_path: Path, model: str, trainable: Lora | Prefix, config: dict[str, Any]
) -> None:
    work = work_of(model, trainable, REPEAT if model == "llama" else COLORS, config)
    bench = SessionFactory(node)
    result = federated(node, work, bench)
    expected = evaluated_logits("fedavg", work, bench, result)
    base, folder = Path(node.models[model]), tmp_path / "adapter"
    write_adapter(folder, result.adapter, trainable, bench.open(work, data_of(work.task), 0, {}).facts, str(base), {})
    if model == "llama":
        kind, labels = AutoModelForCausalLM, {}
    else:
        kind, labels = AutoModelForSequenceClassification, {"num_labels": 3}
    opened = peft.PeftModel.from_pretrained(kind.from_pretrained(base, **labels), folder)
    assert torch.equal(logits(opened), expected)
    if isinstance(trainable, Lora):
        merge(folder, base, tmp_path / "merged")
        torch.testing.assert_close(logits(kind.from_pretrained(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-5)
