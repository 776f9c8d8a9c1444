"""Tests of FlexLoRA over transformers and PEFT, with clients at ranks of their own."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from federated import simulation
from federated.contract import ClientFacts, RoundFacts
from federated.export.adapter_files import write_adapter
from federated.merge import merge
from federated.protocol import Work
from federated.registry import client_half, make_config, server_half
from federated.simulation import Result, SimulatedFederation
from federated.trainable import Lora
from tests.support.training import COLORS, REPEAT, data_of, evaluated_logits, logits, work_of
from worker_agent.settings import AgentSettings
from worker_agent.training.session import SessionFactory

RANKS = {0: {"rank": 1}, 1: {"rank": 4}, 2: {"rank": 2}}


def run_federation(work: Work, bench: SessionFactory) -> Result:
    config = make_config("flexlora", work.config)
    federation = SimulatedFederation(
        "flexlora", config, work.trainable, 3, 2, seed=work.federation_seed, settings=RANKS
    )
    return simulation.run(
        federation, lambda ordinal, seed: bench.open(work, data_of(work.task), seed, RANKS.get(ordinal, {}))
    )


@pytest.mark.parametrize(
    ("model", "trainable", "config"),
    [
        ("bert", Lora(r=4, bias="all"), {}),
        ("bert", Lora(r=4, target_modules=("word_embeddings", "query")), {"export_rank": 2}),
        ("bert-without-pooler", Lora(r=4, rank_pattern={"query": 3}, alpha_pattern={"value": 4}), {"export_rank": 3}),
        ("roberta", Lora(r=4, use_rslora=True), {"aggregation": "rank_aware", "upload_dtype": "bfloat16"}),
        ("llama", Lora(r=4, target_modules="all-linear"), {"aggregation": "product", "scaling": "lora"}),
        ("llama", Lora(r=4), {"aggregation": "zero_pad", "export_rank": 2}),
        ("bert", Lora(r=4), {"aggregation": "stack"}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_peft_opens_the_adapter_as_the_model_that_was_evaluated(
    node: AgentSettings, tmp_path: Path, model: str, trainable: Lora, config: dict[str, Any]
) -> None:
    local = {"learning_rate": 0.05, "batch_size": 8, "local_steps": 3}
    work = work_of(model, trainable, REPEAT if model == "llama" else COLORS, local | config)
    bench = SessionFactory(node)
    result = run_federation(work, bench)
    reference = evaluated_logits("flexlora", work, bench, result)
    base, folder = Path(node.models[model]), tmp_path / "adapter"
    write_adapter(folder, result.adapter, trainable, bench.open(work, data_of(work.task), 0, {}).facts, str(base), {})
    if model == "llama":
        kind, labels = AutoModelForCausalLM, {}
    else:
        kind, labels = AutoModelForSequenceClassification, {"num_labels": 3}
    peft_model = peft.PeftModel.from_pretrained(kind.from_pretrained(base, **labels), folder)
    bare = logits(kind.from_pretrained(base, **labels))
    torch.testing.assert_close(logits(peft_model), reference, rtol=1e-6, atol=1e-6)
    assert (reference - bare).abs().max() > 1e-3
    merge(folder, base, tmp_path / "merged")
    torch.testing.assert_close(logits(kind.from_pretrained(tmp_path / "merged")), reference, rtol=1e-4, atol=1e-5)
    ranks = {len(value) for name, value in result.adapter.tensors.items() if ".lora_A" in name}
    assert max(ranks) == config.get("export_rank", 4)


def test_a_client_with_a_small_rank_sends_a_small_update(node: AgentSettings) -> None:
    work = work_of("bert", Lora(r=4), COLORS, {"local_steps": 1})
    bench = SessionFactory(node)
    config = make_config("flexlora", work.config)
    server, client = (half("flexlora", config, work.trainable) for half in (server_half, client_half))
    state = server.start(bench.open(work, "colors", 0, {}).facts, 7, None)
    clients = [ClientFacts(ordinal, "one", 9, {}, settings, None, 0) for ordinal, settings in RANKS.items()]
    instructions = server.plan(state, clients, RoundFacts(1, "train", 2, 3))
    for ordinal, settings in RANKS.items():
        result = client.run(instructions[ordinal], bench.open(work, "colors", 5, {}), None)
        shapes = {result.update.shape(name) for name in result.update if ".lora_" in name}
        assert shapes == {(settings["rank"], 16), (16, settings["rank"])}
        assert result.metrics["rank"] == settings["rank"]
        assert result.metrics["scale"] == pytest.approx(16 / settings["rank"] ** 0.5)
