"""Shapes of a LLaMA-7B with LoRA."""

from collections.abc import Sequence

from federated.trainable import Initialization, ModelFacts, TensorFacts

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
                first = Initialization.model_validate({"kind": kind, "scale": inputs**-0.5})
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
