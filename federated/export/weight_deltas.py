"""Changes of an adapter or a ledger to the tensors of a base model, applied tensor by tensor."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor

from federated.contract import LedgerWeights
from federated.export.base_files import MergeError
from federated.export.base_names import BaseNames, TrainingTargets, check_places
from federated.patterns import PatternInvalid, first_fitting, valid_patterns

_PEFT_PREFIX = "base_model.model."
_FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
_UNSUPPORTED_FIELDS = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "megatron_config",
    "alora_invocation_tokens",
    "trainable_token_indices",
)
_HEADS = {"classifier", "score", "out_proj", "logits_proj"}
_LARGEST = 1e30
# Models whose projections are Conv1D, with weights of shape (in, out).
_CONV1D_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
_CONV1D_MODULES = {"c_attn", "c_fc", "c_proj", "q_attn"}


class Source(Protocol):
    """The result of a training, by the tensor names of the trained model."""

    @property
    def targets(self) -> TrainingTargets:
        """The tensors that it changes or contains."""

    @property
    def head_rows(self) -> int | None:
        """Rows of a classifier's head, one for each label. None without a head."""

    def tensors(self, names: Mapping[str, str | None], tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The base's `tensor`, changed for each of `names`: a name to write -> the name whose value it shares."""

    def new_tensors(self, names: frozenset[str]) -> dict[str, Tensor]:
        """Its tensors of these names, which the base lacks."""


class WeightChanges:
    """Changes to a base model, file by file. Raises MergeError for a trained tensor without a place in the base."""

    def __init__(self, source: Source, names: BaseNames) -> None:
        targets = source.targets
        check_places(names, targets)
        self._source, self._names = source, names
        self._new = names.missing & targets.names
        self._groups: dict[str, list[str]] = {}
        for name, first in names.ties.items():
            self._groups.setdefault(first, [first]).append(name)
        self._own = targets.own_tensors
        self._joint = targets.names - self._own
        #: Whether tensors that the base shares differ in the trained model.
        self.unties = any(self._own.intersection(group) for group in self._groups.values())

    def apply_to(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The changed tensors of one file, by the names of the trained model. Tensors without a place are omitted."""
        for name, tensor in tensors.items():
            if name in self._names.parts:
                yield name, tensor
            elif name in self._names.places:
                yield from self._source.tensors(self._output_names(self._names.places[name]), tensor)

    def new_tensors(self) -> dict[str, Tensor]:
        """Tensors that the base lacks, such as a classifier's head."""
        return self._source.new_tensors(self._new)

    def _output_names(self, name: str) -> dict[str, str | None]:
        """The names for a tensor of the base in the output, each with the tensor whose new value it shares."""
        present = set(self._names.places.values())
        group = self._groups.get(self._names.ties.get(name, name), [])
        joint = next((one for one in group if one in self._joint), None)
        names = [name]
        if self.unties and name in self._groups:
            names += [one for one in group if one not in present]
        return {one: None if one in self._own else joint for one in names}


class PeftChanges:
    """Changes of a LoRA adapter. Raises MergeError for a configuration that cannot be merged."""

    def __init__(self, config: Mapping[str, Any], adapter: Mapping[str, Tensor], model_type: str | None) -> None:
        _check_config(config)
        self._config = config
        self._conv1d = bool(config.get("fan_in_fan_out")) or model_type in _CONV1D_MODELS
        self._pairs: dict[str, dict[str, Tensor]] = {}
        self._values: dict[str, Tensor] = {}
        for peft_name, tensor in adapter.items():
            name = peft_name.removeprefix(_PEFT_PREFIX).replace(".modules_to_save.", ".").replace(".base_layer.", ".")
            module, factor = _split_factor(name)
            table = self._pairs.setdefault(module, {}) if factor else self._values
            if (factor or name) in table:
                raise MergeError(f"the adapter has two tensors for {name!r}")
            table[factor or name] = tensor

    @property
    def targets(self) -> TrainingTargets:
        """Weights with LoRA factors, and tensors trained in full."""
        weights = frozenset(f"{module}.weight" for module in self._pairs)
        modules_to_save = tuple(self._config.get("modules_to_save") or ())
        return TrainingTargets(self._config.get("task_type"), weights | self._values.keys(), weights, modules_to_save)

    @property
    def head_rows(self) -> int | None:
        """Rows of the head that was trained beside the factors."""
        targets = self.targets
        return _head_rows({name: len(value) for name, value in self._values.items() if targets.is_saved(name)})

    def tensors(self, names: Mapping[str, str | None], tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """`W`, or the trained value that replaces it, plus `scale * B A` of a module's own factors."""
        for place, (name, shared) in enumerate(names.items()):
            value = self._values.get(name, None if shared is None else self._values.get(shared))
            # A file cannot contain two tensors that share memory.
            weight = tensor.clone() if place else tensor
            if value is not None:
                weight = self._replacement(name, tensor, value)
            module = name.removesuffix(".weight")
            pair = self._pairs.get(module) if name.endswith(".weight") else None
            yield name, weight if pair is None else self._merge(module, weight, pair)

    def new_tensors(self, names: frozenset[str]) -> dict[str, Tensor]:
        """Their trained values."""
        return {name: self._values[name] for name in sorted(names)}

    def _replacement(self, name: str, tensor: Tensor, value: Tensor) -> Tensor:
        # A new classifier head may replace a base's head for another number of labels.
        new_head = self._config.get("task_type") == "SEQ_CLS" and self.targets.is_saved(name)
        if tensor.shape != value.shape and not (new_head and tensor.shape[1:] == value.shape[1:]):
            raise MergeError(f"tensor {name!r} has shape {list(tensor.shape)}, the adapter's {list(value.shape)}")
        return value.to(tensor.dtype, copy=True)

    def _merge(self, module: str, weight: Tensor, pair: Mapping[str, Tensor]) -> Tensor:
        embedding = "lora_embedding_A" in pair
        names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        if set(names) != pair.keys():
            raise MergeError(f"the adapter has only {', '.join(sorted(pair))} of module {module!r}")
        a, b = (pair[name].float() for name in names)
        if a.dim() != 2 or b.dim() != 2:
            raise MergeError(f"module {module!r} has factors of more than two dimensions")
        change = (b @ a) * self._scale(module, rank=len(a))
        if embedding or (self._conv1d and module.rpartition(".")[2] in _CONV1D_MODULES):
            change = change.T
        if change.shape != weight.shape:
            raise MergeError(f"module {module!r} has shape {list(weight.shape)}, its factors {list(change.shape)}")
        return (weight.float() + change).to(weight.dtype).contiguous()

    def _scale(self, module: str, rank: int) -> float:
        alpha: float = first_fitting(self._config.get("alpha_pattern") or {}, module, self._config["lora_alpha"])
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)


class LedgerChanges:
    """Changes of a ledger. Differences are added in float32 and rounded once. Tied tensors stay tied."""

    def __init__(self, weights: LedgerWeights, task_type: str | None) -> None:
        self._differences = weights.differences
        self._values = weights.values
        self._task_type = task_type

    @property
    def targets(self) -> TrainingTargets:
        """Tensors with a difference from the base, and those with a value of their own."""
        return TrainingTargets(self._task_type, frozenset(self._differences) | frozenset(self._values))

    @property
    def head_rows(self) -> int | None:
        """Rows of the new head."""
        return _head_rows({name: self._values.shape(name)[0] for name in self._values})

    def tensors(self, names: Mapping[str, str | None], tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """`W` plus its difference, or the value that replaces it."""
        for name, shared in names.items():
            source = name if name in self._differences else shared
            if name in self._values:
                yield name, self._values[name]
            elif source is not None and source in self._differences:
                yield name, _add_difference(source, tensor, self._differences)
            else:
                yield name, tensor

    def new_tensors(self, names: frozenset[str]) -> dict[str, Tensor]:
        """A head, and tensors that keep their seeded initial value."""
        return {name: self._values[name] for name in sorted(names)}


def _head_rows(rows: Mapping[str, int]) -> int | None:
    heads = [name for name in sorted(rows) if name.endswith(".weight") and name.split(".")[-2] in _HEADS]
    return rows[heads[-1]] if heads else None


def _add_difference(name: str, tensor: Tensor, differences: Mapping[str, Tensor]) -> Tensor:
    difference = differences[name]
    if tensor.shape != difference.shape:
        raise MergeError(f"tensor {name!r} has shape {list(tensor.shape)}, the ledger's {list(difference.shape)}")
    return (tensor.float() + difference).to(tensor.dtype)


def _split_factor(name: str) -> tuple[str, str | None]:
    for factor in _FACTORS:
        module, separator, rest = name.partition(f".{factor}")
        if separator and rest in ("", ".weight"):
            return module, factor
    return name, None


def _check_config(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise MergeError(f"peft_type {config.get('peft_type')!r} cannot be merged, only LORA")
    for field in _UNSUPPORTED_FIELDS:
        if config.get(field):
            raise MergeError(f"an adapter with {field} cannot be merged here")
    if not _is_number(config.get("lora_alpha")):
        raise MergeError(f"lora_alpha {str(config.get('lora_alpha'))[:64]!r} is not a number")
    _check_alphas(config.get("alpha_pattern") or {})


def _check_alphas(alphas: object) -> None:
    """Reject regular expressions of PEFT. The characters `^`, `$` and `|` mean the same in PEFT and in patterns."""
    if not isinstance(alphas, Mapping) or not all(map(_is_number, alphas.values())):
        raise MergeError("alpha_pattern is not a mapping from names of modules to numbers")
    try:
        valid_patterns(tuple(alphas))
    except PatternInvalid as error:
        raise MergeError(f"alpha_pattern: {error}") from error
    for pattern in alphas:
        if "*" in pattern:
            raise MergeError(
                f"alpha_pattern: {pattern!r} is a regular expression; only names of modules are supported"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
