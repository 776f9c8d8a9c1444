"""Mapping from the tensor names of a base model's files to those of the trained model, derived from names alone.

Files may lack a prefix of the trained model (`bert.encoder` in a classifier's adapter is `encoder` in BERT's files),
or use the names of an earlier library. If that leaves a name open, or if two names may share one tensor,
`library_names` gets the names from transformers.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from federated.export.base_files import BaseFiles, MergeError

_OLDER = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
_CAUSAL = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True, slots=True)
class TrainingTargets:
    """The tensors that an adapter or a ledger changes or contains. `names` are those of the trained model.

    `lora_weights`: the names with LoRA factors. `modules_to_save`: modules that the adapter stores in full.
    """

    task_type: str | None
    names: frozenset[str]
    lora_weights: frozenset[str] = frozenset()
    modules_to_save: tuple[str, ...] = ()

    def is_saved(self, name: str) -> bool:
        """Whether a tensor is in one of `modules_to_save`, which PEFT compares with the end of a module's name."""
        return any(f".{module}." in f".{name}" for module in self.modules_to_save)

    @property
    def own_tensors(self) -> frozenset[str]:
        """Names with a tensor of their own, even if they share one in the base."""
        return self.lora_weights | {name for name in self.names if self.is_saved(name)}


@dataclass(frozen=True, slots=True)
class BaseNames:
    """Names of a base's tensors in the trained model.

    `places`: name in the trained model by stored name. `parts`: stored tensors that the model combines into others
    (such as experts that it fuses), written unchanged. `missing`: names of the model that the files lack.
    `ties`: names that share the tensor of another name with a place. `separable`: a configuration can untie them.
    `architecture`, `padding` (id, token): those of the training, None if unknown.
    """

    places: Mapping[str, str]
    parts: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    ties: Mapping[str, str] = field(default_factory=dict)
    separable: bool = True
    architecture: str | None = None
    padding: tuple[int, str] | None = None


def have_same_names(base: BaseFiles, targets: TrainingTargets) -> bool:
    """Whether the files of a causal model have the adapter's names, and none of its tensors can be shared."""
    config = base.config
    architecture = next(iter(config.get("architectures") or ()), "")
    causal = targets.task_type in (None, "CAUSAL_LM") and architecture.endswith(_CAUSAL)
    rows = _vocabulary(config)
    shapes = (base.shapes.get(name) for name in targets.names)
    return causal and rows is not None and all(shape is not None and rows not in shape[:1] for shape in shapes)


def plain_names(base: BaseFiles, targets: TrainingTargets) -> BaseNames:
    """Names by prefix and older spelling. Raises MergeError for an ambiguous name."""
    prefix = _prefix(sorted(targets.lora_weights or targets.names), base.shapes)
    places = {name: prefix + _newer(name) for name in base.shapes}
    present = set(places.values())
    new = targets.names - present
    missing = frozenset(name for name in new if targets.is_saved(name) or not targets.lora_weights)
    # A classifier's head is always its own tensor. A language head may share the embedding's.
    classifier = targets.task_type == "SEQ_CLS"
    doubtful = [name for name in missing if not classifier or _has_any(name.rpartition(".")[0], present)]
    doubtful += new - missing
    if doubtful:
        raise MergeError(f"the base has no tensor {min(doubtful)!r}; to search for other names, {_INSTALL}")
    rows = _vocabulary(base.config)
    shared = [name for key, name in places.items() if name in targets.names and rows in base.shapes[key][:1]]
    if shared and rows is not None and base.config.get("tie_word_embeddings") is not False:
        raise MergeError(f"{min(shared)!r} may share its tensor with another; to resolve this, {_INSTALL}")
    return BaseNames(places, missing=missing, architecture=_architecture(base.config, targets))


_INSTALL = "transformers 5 must be installed"


def check_places(names: BaseNames, targets: TrainingTargets) -> None:
    """Raise MergeError unless every trained tensor has exactly one place."""
    present = list(names.places.values())
    if len(set(present)) < len(present):
        twice = min(name for name in set(present) if present.count(name) > 1)
        raise MergeError(f"the base has {twice!r} under two names")
    for name in sorted(targets.names):
        if name not in names.missing and name not in names.ties and name not in set(present):
            raise MergeError(_without_place(name, targets))
    for name in sorted(targets.lora_weights & names.missing):
        raise MergeError(_without_place(name, targets))
    if targets.own_tensors & (set(names.ties) | set(names.ties.values())) and not names.separable:
        shared = min(targets.own_tensors & (set(names.ties) | set(names.ties.values())))
        raise MergeError(
            f"{shared!r} shares its tensor with another in every model of this type; they cannot be untied"
        )


def _without_place(name: str, targets: TrainingTargets) -> str:
    if name in targets.lora_weights:
        return f"the base has no weight for the adapted module {name.removesuffix('.weight')!r}"
    return f"the base has no tensor {name!r}, which was trained"


def _architecture(config: Mapping[str, Any], targets: TrainingTargets) -> str | None:
    """The name of the trained model's class by the convention of transformers."""
    base = next(iter(config.get("architectures") or ()), None)
    if base is None or targets.task_type != "SEQ_CLS":
        return None
    for ending in (*_CAUSAL, "ForMaskedLM", "ForPreTraining", "ForConditionalGeneration", "Model"):
        if base.endswith(ending):
            return str(base.removesuffix(ending)) + "ForSequenceClassification"
    return None


def _vocabulary(config: Mapping[str, Any]) -> int | None:
    text = config.get("text_config")
    rows = config.get("vocab_size", text.get("vocab_size") if isinstance(text, Mapping) else None)
    return rows if isinstance(rows, int) else None


def _newer(name: str) -> str:
    for older, newer in _OLDER:
        name = name.replace(older, newer)
    return name


def _has_any(module: str, names: Collection[str]) -> bool:
    return any(name.startswith(module + ".") for name in names)


def _prefix(names: Sequence[str], base: Collection[str]) -> str:
    """The prefix of the adapter's names that the base lacks, such as `bert.` in the adapter of a classifier."""
    base_names = set(map(_newer, base))
    for name in names:
        parts = name.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in base_names:
                return "".join(f"{part}." for part in parts[:depth])
    return ""
