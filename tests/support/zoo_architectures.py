"""Architectures of the zoo: two layers of width 32 over 72 embeddings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.support.zoo_tokenizers import DECODER, ENCODER, GPT2, QWEN2, Tokens

Task = Literal["classifier", "causal_lm", "cloze"]
Reading = Literal["both ways", "left to right", "encoder and decoder"]

EMBEDDINGS = 72
_SIZES: dict[str, Any] = {
    "vocab_size": EMBEDDINGS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
_ENCODER = _SIZES | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_DECODER = _SIZES | {"bos_token_id": 1, "eos_token_id": 2}
_GROUPED = _DECODER | {"num_key_value_heads": 2, "pad_token_id": None, "tie_word_embeddings": False}
_GEMMA = _GROUPED | {"head_dim": 8, "tie_word_embeddings": True}
_GEMMA_3 = _GEMMA | {"query_pre_attn_scalar": 8, "sliding_window": 16}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 28,
    "patch_size": 14,
}


@dataclass(frozen=True, slots=True)
class Kind:
    """An architecture, and the form of its folder.

    `family`: the beginning of the names of its classes in transformers; `head`: the end of the name of the one that
    is stored. `tasks`: those that a node can train it for; any other is refused. `embedding`, `norm`, `output`: names
    of modules, as patterns (`norm` is empty where norms have no weights); `tied`: the output shares the embedding's
    tensor. `form`: what is done to the folder after it was stored.
    """

    family: str
    head: str
    fields: Mapping[str, Any]
    reading: Reading
    tasks: frozenset[Task]
    tokens: Tokens
    embedding: str
    norm: str
    output: str
    tied: bool
    config: str = ""
    form: Callable[[Path], None] | None = None
    of: str = ""


def _encoder(
    family: str, output: str = "decoder", norm: str = "LayerNorm", embedding: str = "word_embeddings", **fields: Any
) -> Kind:
    tasks: frozenset[Task] = frozenset({"classifier", "cloze"})
    sizes = _ENCODER | fields
    return Kind(family, "ForMaskedLM", sizes, "both ways", tasks, ENCODER, embedding, norm, output, tied=True)


def _decoder(family: str, sizes: Mapping[str, Any] = _GROUPED, **others: Any) -> Kind:
    tasks: frozenset[Task] = frozenset({"classifier", "causal_lm", "cloze"})
    known = {"head": "ForCausalLM", "tokens": DECODER, "embedding": "embed_tokens", "norm": "norm"}
    known |= {"output": "lm_head", "tied": False}
    fields = {**sizes, **others.pop("fields", {})}
    return Kind(family, fields=fields, reading="left to right", tasks=tasks, **{**known, **others})


def _both(family: str, embedding: str, norm: str, **fields: Any) -> Kind:
    tasks: frozenset[Task] = frozenset({"classifier"})
    sizes = {"vocab_size": EMBEDDINGS, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2} | fields
    head = "ForConditionalGeneration"
    return Kind(family, head, sizes, "encoder and decoder", tasks, ENCODER, embedding, norm, "lm_head", tied=True)


_GPT2: dict[str, Any] = {"vocab_size": EMBEDDINGS, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0}
ARCHITECTURES: Mapping[str, Kind] = {
    "bert": _encoder("Bert"),
    "roberta": _encoder("Roberta"),
    "electra": _encoder("Electra", "generator_lm_head", embedding_size=16),
    "roformer": _encoder("RoFormer", embedding_size=32),
    "distilbert": _encoder(
        "DistilBert",
        "vocab_projector",
        "sa_layer_norm",
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
        attention_dropout=0.1,
    ),
    "albert": _encoder("Albert", norm="full_layer_layer_norm", embedding_size=16),
    "deberta-v2": _encoder("DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"], type_vocab_size=0),
    "mpnet": _encoder("MPNet"),
    "camembert": _encoder("Camembert"),
    "xlm-roberta": _encoder("XLMRoberta"),
    "modernbert": _encoder(
        "ModernBert",
        norm="mlp_norm",
        embedding="tok_embeddings",
        cls_token_id=0,
        sep_token_id=2,
        global_attn_every_n_layers=2,
        local_attention=8,
        initializer_cutoff_factor=2.0,
    ),
    "roberta-prelayernorm": _encoder("RobertaPreLayerNorm"),
    "gpt2": _decoder(
        "GPT2",
        _GPT2,
        fields={"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        head="LMHeadModel",
        tokens=GPT2,
        embedding="wte",
        norm="ln_1",
        tied=True,
    ),
    "gpt-neo": _decoder(
        "GPTNeo",
        _GPT2,
        embedding="wte",
        norm="ln_1",
        tied=True,
        tokens=GPT2,
        fields={
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 64,
            "window_size": 8,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "gptj": _decoder(
        "GPTJ",
        _GPT2,
        embedding="wte",
        norm="ln_1",
        tokens=GPT2,
        fields={"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    ),
    "gpt-neox": _decoder("GPTNeoX", _DECODER, embedding="embed_in", norm="input_layernorm"),
    "opt": _decoder(
        "OPT",
        _DECODER,
        fields={"ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": None, "init_std": 0.2},
        norm="self_attn_layer_norm",
        tied=True,
    ),
    "bloom": _decoder(
        "Bloom",
        _DECODER,
        fields={"n_layer": 2, "n_head": 4, "pad_token_id": None},
        embedding="word_embeddings",
        norm="input_layernorm",
        tied=True,
    ),
    "falcon": _decoder("Falcon", _DECODER, embedding="word_embeddings", norm="input_layernorm", tied=True),
    "mpt": _decoder(
        "Mpt",
        _DECODER,
        fields={"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 64},
        embedding="wte",
        norm="norm_1",
        tied=True,
    ),
    "llama": _decoder("Llama"),
    "llama-tied": _decoder("Llama", fields={"tie_word_embeddings": True}, tied=True),
    "mistral": _decoder("Mistral"),
    "mixtral": _decoder("Mixtral", fields={"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": _decoder("Qwen2", tokens=QWEN2),
    "qwen2-moe": _decoder("Qwen2Moe", fields=_EXPERTS | {"shared_expert_intermediate_size": 16}),
    "qwen3": _decoder("Qwen3", fields={"head_dim": 12}),
    "qwen3-moe": _decoder("Qwen3Moe", fields=_EXPERTS | {"head_dim": 8}),
    "gemma": _decoder("Gemma", _GEMMA, tied=True),
    "gemma2": _decoder("Gemma2", _GEMMA_3, tied=True),
    "gemma3": _decoder("Gemma3", _GEMMA_3, config="Gemma3TextConfig", tied=True),
    "gemma3-vision": _decoder(
        "Gemma3",
        {},
        head="ForConditionalGeneration",
        tied=True,
        fields={
            "text_config": _GEMMA_3 | {"pad_token_id": 2},
            "vision_config": _VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": 68,
            "boi_token_index": 69,
            "eoi_token_index": 70,
            "tie_word_embeddings": True,
        },
    ),
    "phi": _decoder("Phi", _DECODER, norm="input_layernorm"),
    "phi3": _decoder("Phi3"),
    "stablelm": _decoder("StableLm"),
    "olmo": _decoder("Olmo", norm=""),
    "bart": _both(
        "Bart",
        "shared",
        "layernorm_embedding",
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        init_std=0.2,
        decoder_start_token_id=2,
    ),
    "t5": _both(
        "T5",
        "shared",
        "layer_norm",
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=1,
    ),
}
