"""The trainable part of a model as plain data: LoRA factors, a prefix, or the weights themselves.

Field names of `Lora` and `Prefix` are those of PEFT. `ModelFacts` is a worker's description of the model that it
builds: names, shapes and initializations of the trainable tensors, and never a weight.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from federated.bounds import MAX_SMALL
from federated.patterns import (
    MAX_PATTERNS,
    DottedName,
    PatternList,
    PatternText,
    by_module_name,
    first_fitting,
    valid_patterns,
)

MAX_RANK = 4096
MAX_TENSORS = 65_536
MAX_DIMENSIONS = 8
MAX_SCALE = 1e6
PROMPT_EMBEDDINGS = "prompt_embeddings"
ALL_LINEAR = "all-linear"

TaskType = Literal["SEQ_CLS", "CAUSAL_LM", "FEATURE_EXTRACTION"]


class Plain(BaseModel):
    """Base of plain values: frozen, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def _shape_of(value: object) -> str:
    return "one" if isinstance(value, str) else "several"


Targets = Annotated[
    Annotated[PatternText, Tag("one")] | Annotated[PatternList, Tag("several")], Discriminator(_shape_of)
]


class Lora(Plain):
    """Low-rank adapters: the fields of `peft.LoraConfig` that affect which parameters are trained or their scale.

    Patterns (`federated.patterns`) select the modules. PEFT gets the names of the matching modules instead.
    """

    kind: Literal["lora"] = "lora"
    r: int = Field(default=8, ge=1, le=MAX_RANK, description="rank of every adapted matrix")
    rank_pattern: Annotated[
        dict[PatternText, Annotated[int, Field(ge=1, le=MAX_RANK)]], AfterValidator(valid_patterns)
    ] = Field(default_factory=dict, max_length=MAX_PATTERNS, description="for single modules; the first match counts")
    lora_alpha: float = Field(default=16, gt=0, le=65536)
    alpha_pattern: Annotated[
        dict[PatternText, Annotated[float, Field(gt=0, le=65536)]], AfterValidator(valid_patterns)
    ] = Field(default_factory=dict, max_length=MAX_PATTERNS, description="for single modules; the first match counts")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Targets | None = Field(
        default=None,
        description="patterns, one pattern, 'all-linear', or null for PEFT's default for this model",
    )
    layers_to_transform: (
        Annotated[tuple[Annotated[int, Field(ge=0, le=65536)], ...], Field(max_length=MAX_PATTERNS, fail_fast=True)]
        | None
    ) = Field(default=None, description="restricts the matching modules to these layers")
    use_rslora: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    modules_to_save: PatternList | None = Field(
        default=None, description="modules to train in full beside the factors; null: the head of a classifier"
    )

    @field_validator("layers_to_transform")
    @classmethod
    def _of_named_modules(cls, layers: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        if layers and info.data.get("target_modules") == ALL_LINEAR:
            raise ValueError(f"cannot be used with target_modules {ALL_LINEAR!r}; name the modules")
        return layers

    @property
    def largest_rank(self) -> int:
        """The highest rank of any adapted matrix."""
        return max((self.r, *self.rank_pattern.values()))

    def alpha_of(self, module: str) -> float:
        """The alpha of a module, given by its canonical name."""
        return first_fitting(self.alpha_pattern, module, self.lora_alpha)


class Prefix(Plain):
    """Trainable key and value prefixes in every layer, without reparametrization (P-tuning v2)."""

    kind: Literal["prefix"] = "prefix"
    num_virtual_tokens: int = Field(default=20, ge=1, le=4096)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    init_std: float = Field(default=0.02, gt=0, le=10)


class Full(Plain):
    """The weights themselves: all of them, or those with a pattern that matches their name or a module above."""

    kind: Literal["full"] = "full"
    names: PatternList | None = None


Trainable = Annotated[Lora | Prefix | Full, Field(discriminator="kind")]


class Initialization(Plain):
    """Initialization of a trainable tensor.

    `zeros`, `uniform` in [-scale, scale) and `normal` with standard deviation `scale` are computed by
    `federated.maths.initialization`, with the same bits everywhere. `base` is the base model's own value: such a
    tensor is sent as a difference that starts at zero.
    """

    kind: Literal["zeros", "uniform", "normal", "base"]
    scale: float = Field(default=0.0, ge=0, le=MAX_SCALE, allow_inf_nan=False)


class TensorFacts(Plain):
    """One trainable tensor under its canonical name (no `base_model.model.`, `.base_layer`, `.default`)."""

    name: DottedName
    shape: tuple[Annotated[int, Field(ge=0, le=MAX_SMALL)], ...] = Field(max_length=MAX_DIMENSIONS, fail_fast=True)
    dtype: str = Field(max_length=16, description="safetensors dtype, such as F32")
    initialisation: Initialization

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor in a state: as float32, or as its own dtype if that is wider."""
        return math.prod(self.shape) * (8 if self.dtype.endswith("64") else 4)


TensorList = Annotated[tuple[TensorFacts, ...], Field(max_length=MAX_TENSORS, fail_fast=True)]
ModuleNames = Annotated[tuple[DottedName, ...], Field(max_length=MAX_TENSORS, fail_fast=True)]


class ModelFacts(Plain):
    """A worker's description of its model. It must be equal on all clients of a federation.

    `tensors` are sorted by name. `seeded` tensors are neither trained nor in the base model's files (a pooler, the
    lower part of a head). They keep their seeded initial value, are never sent, and are part of the exported adapter.
    `target_modules` and `modules_to_save` are as PEFT resolves them, for the exported configuration.
    `kv_width` is `kv_heads` times the width of a head. `weights_digest`: "sha256:" of the base weights' files.
    """

    model_type: str = Field(max_length=128)
    task_type: TaskType
    tensors: TensorList
    seeded: TensorList = ()
    layers: int = Field(ge=0, le=65_536)
    hidden: int = Field(ge=0, le=MAX_SMALL)
    kv_width: int = Field(ge=0, le=MAX_SMALL)
    kv_heads: int = Field(default=1, ge=0, le=MAX_SMALL)
    target_modules: ModuleNames = ()
    modules_to_save: ModuleNames = ()
    weights_digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")

    @property
    def adapted_modules(self) -> list[str]:
        """Sorted names of the modules with LoRA factors."""
        return sorted({tensor.name.partition(".lora_")[0] for tensor in self.tensors if ".lora_" in tensor.name})

    @model_validator(mode="after")
    def _check_order(self) -> "ModelFacts":
        names = [tensor.name for tensor in self.tensors]
        if names != sorted(set(names)):
            raise ValueError("tensors must be sorted by name, each once")
        return self


def first_difference(ours: ModelFacts, theirs: ModelFacts) -> str | None:
    """Name of the first field or tensor in which two descriptions differ, or None if they are equal."""
    mine = {tensor.name: tensor for tensor in ours.tensors}
    other = {tensor.name: tensor for tensor in theirs.tensors}
    for name in sorted(mine.keys() | other.keys()):
        if mine.get(name) != other.get(name):
            return name
    for field in ModelFacts.model_fields:
        if field != "tensors" and getattr(ours, field) != getattr(theirs, field):
            return field
    return None


def peft_name(canonical: str, trainable: Lora | Prefix | Full) -> str:
    """The name of a tensor in PEFT's `adapter_model.safetensors`.

    PEFT wraps the base model once for a prefix and twice for LoRA. The prefix itself has no such name component.
    """
    if isinstance(trainable, Prefix):
        return canonical if canonical == PROMPT_EMBEDDINGS else "base_model." + canonical
    return "base_model.model." + canonical


def adapter_config(trainable: Lora | Prefix, model: ModelFacts, base_model: str) -> dict[str, Any]:
    """The `adapter_config.json` of an exported adapter for `peft.PeftModel.from_pretrained`.

    It names this model's modules, ranks and alphas in full, without patterns. The base model is an
    `AutoModelForSequenceClassification` with the federation's number of labels, an `AutoModelForCausalLM`, or (for an
    encoder's cloze, PEFT's FEATURE_EXTRACTION) an `AutoModelForMaskedLM`.
    """
    common: dict[str, Any] = {
        "base_model_name_or_path": base_model,
        "task_type": model.task_type,
        "inference_mode": True,
        "modules_to_save": list(model.modules_to_save) or None,
    }
    if isinstance(trainable, Prefix):
        return common | _prefix_config(trainable, model)
    fields = trainable.model_dump(mode="json", exclude={"kind", "modules_to_save"})
    module_fields = {
        "target_modules": list(model.target_modules),
        "layers_to_transform": None,
        "rank_pattern": by_module_name(trainable.rank_pattern, model.adapted_modules),
        "alpha_pattern": by_module_name(trainable.alpha_pattern, model.adapted_modules),
    }
    return common | {"peft_type": "LORA"} | fields | module_fields


def _prefix_config(trainable: Prefix, model: ModelFacts) -> dict[str, Any]:
    return {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": trainable.num_virtual_tokens,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
        "num_layers": model.layers,
        "token_dim": model.kv_width,
        "num_attention_heads": model.kv_heads,
        "encoder_hidden_size": model.kv_width,
    }
