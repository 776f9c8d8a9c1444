"""What an adapter or a ledger does to the tensors of a base model, one tensor after another."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor

from federated.contract import LedgerWeights
from federated.export.base_files import MergeError
from federated.export.base_names import BaseNames, Trained, check_places
from federated.patterns import PatternInvalid, first_fitting, valid_patterns

_PEFT_PREFIX = "base_model.model."
_FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
_UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "megatron_config",
    "alora_invocation_tokens",
    "trainable_token_indices",
)
_HEADS = {"classifier", "score", "out_proj", "logits_proj"}
_LARGEST = 1e30
# Their projections are Conv1D: the weight is stored as (in, out).
_TRANSPOSED_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
_TRANSPOSED = {"c_attn", "c_fc", "c_proj", "q_attn"}


class Source(Protocol):
    """What was trained, before it is known what the base calls its tensors."""

    @property
    def trained(self) -> Trained:
        """The tensors."""

    @property
    def head_rows(self) -> int | None:
        """Rows of a classifier's head, so its labels; None without one."""

    def tensors(self, names: Mapping[str, str | None], tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """`tensor`, one of the base's, changed for each of `names`: names to write, and whose value they share."""

    def added(self, names: frozenset[str]) -> dict[str, Tensor]:
        """Those of its own tensors that the base lacks."""


class WeightChanges:
    """Changes of a base model, file by file. Raises MergeError for a trained tensor that has no place in the base."""

    def __init__(self, source: Source, names: BaseNames) -> None:
        trained = source.trained
        check_places(names, trained)
        self._source, self._names = source, names
        self._new = names.lacking & trained.names
        self._groups: dict[str, list[str]] = {}
        for name, first in names.tied.items():
            self._groups.setdefault(first, [first]).append(name)
        self._apart = trained.apart
        self._joint = trained.names - self._apart
        #: Whether tensors that the base shares differ in the trained model.
        self.parted = any(self._apart.intersection(group) for group in self._groups.values())

    def applied(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """One file's tensors, changed, under the names of the trained model; what that has no use for is left out."""
        for stored, tensor in tensors.items():
            if stored in self._names.parts:
                yield stored, tensor
            elif stored in self._names.places:
                yield from self._source.tensors(self._written(self._names.places[stored]), tensor)

    def added(self) -> dict[str, Tensor]:
        """Tensors that the base does not have, such as a classifier's head."""
        return self._source.added(self._new)

    def _written(self, name: str) -> dict[str, str | None]:
        """Names that a tensor of the base is written under, each with the tensor whose new value it shares."""
        stored = set(self._names.places.values())
        group = self._groups.get(self._names.tied.get(name, name), [])
        joint = next((one for one in group if one in self._joint), None)
        written = [name]
        if self.parted and name in self._groups:
            written += [one for one in group if one not in stored]
        return {one: None if one in self._apart else joint for one in written}


class PeftChanges:
    """What a LoRA adapter trained. Raises MergeError for a configuration that cannot be merged."""

    def __init__(self, config: Mapping[str, Any], adapter: Mapping[str, Tensor], model_type: str | None) -> None:
        _check_config(config)
        self._config = config
        self._transposed = bool(config.get("fan_in_fan_out")) or model_type in _TRANSPOSED_MODELS
        self._pairs: dict[str, dict[str, Tensor]] = {}
        self._values: dict[str, Tensor] = {}
        for stored, tensor in adapter.items():
            name = stored.removeprefix(_PEFT_PREFIX).replace(".modules_to_save.", ".").replace(".base_layer.", ".")
            module, factor = _split_factor(name)
            table = self._pairs.setdefault(module, {}) if factor else self._values
            if (factor or name) in table:
                raise MergeError(f"the adapter has two tensors for {name!r}")
            table[factor or name] = tensor

    @property
    def trained(self) -> Trained:
        """Factors, and tensors trained in full."""
        adapted = frozenset(f"{module}.weight" for module in self._pairs)
        saved = tuple(self._config.get("modules_to_save") or ())
        return Trained(self._config.get("task_type"), adapted | self._values.keys(), adapted, saved)

    @property
    def head_rows(self) -> int | None:
        """Rows of the head that was trained beside the factors."""
        trained = self.trained
        return _head_rows({name: len(value) for name, value in self._values.items() if trained.is_saved(name)})

    def tensors(self, names: Mapping[str, str | None], tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """`W`, or what was trained in its place, and `scale * B A` of a module's own factors."""
        for place, (name, shared) in enumerate(names.items()):
            value = self._values.get(name, None if shared is None else self._values.get(shared))
            # Files hold no two tensors over one memory.
            changed = tensor.clone() if place else tensor
            if value is not None:
                changed = self._replaced(name, tensor, value)
            module = name.removesuffix(".weight")
            pair = self._pairs.get(module) if name.endswith(".weight") else None
            yield name, changed if pair is None else self._merged(module, changed, pair)

    def added(self, names: frozenset[str]) -> dict[str, Tensor]:
        """As they were trained."""
        return {name: self._values[name] for name in sorted(names)}

    def _replaced(self, name: str, tensor: Tensor, value: Tensor) -> Tensor:
        # A classifier is trained anew over a base that has one for another number of labels.
        new_head = self._config.get("task_type") == "SEQ_CLS" and self.trained.is_saved(name)
        if tensor.shape != value.shape and not (new_head and tensor.shape[1:] == value.shape[1:]):
            raise MergeError(f"tensor {name!r} has shape {list(tensor.shape)}, the adapter's {list(value.shape)}")
        return value.to(tensor.dtype, copy=True)

    def _merged(self, module: str, weight: Tensor, pair: Mapping[str, Tensor]) -> Tensor:
        embedding = "lora_embedding_A" in pair
        names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        if set(names) != pair.keys():
            raise MergeError(f"the adapter has only {', '.join(sorted(pair))} of module {module!r}")
        a, b = (pair[name].float() for name in names)
        if a.dim() != 2 or b.dim() != 2:
            raise MergeError(f"module {module!r} has factors of more than two dimensions")
        change = (b @ a) * self._scale(module, rank=len(a))
        if embedding or (self._transposed and module.rpartition(".")[2] in _TRANSPOSED):
            change = change.T
        if change.shape != weight.shape:
            raise MergeError(f"module {module!r} has shape {list(weight.shape)}, its factors {list(change.shape)}")
        return (weight.float() + change).to(weight.dtype).contiguous()

    def _scale(self, module: str, rank: int) -> float:
        alpha: float = first_fitting(self._config.get("alpha_pattern") or {}, module, self._config["lora_alpha"])
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)


class LedgerChanges:
    """What a ledger trained: differences are added in float32 and rounded once. A tied tensor stays one."""

    def __init__(self, weights: LedgerWeights, task_type: str | None) -> None:
        self._differences = weights.differences
        self._values = weights.values
        self._task_type = task_type

    @property
    def trained(self) -> Trained:
        """Tensors that moved from the base's, and those with a start of their own."""
        return Trained(self._task_type, frozenset(self._differences) | frozenset(self._values))

    @property
    def head_rows(self) -> int | None:
        """Rows of the head that started anew."""
        return _head_rows({name: self._values.shape(name)[0] for name in self._values})

    def tensors(self, names: Mapping[str, str | None], tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """`W` and how far it moved, or the value of one that started anew."""
        for name, shared in names.items():
            moved = name if name in self._differences else shared
            if name in self._values:
                yield name, self._values[name]
            elif moved is not None and moved in self._differences:
                yield name, _moved(moved, tensor, self._differences)
            else:
                yield name, tensor

    def added(self, names: frozenset[str]) -> dict[str, Tensor]:
        """A head, and what never moved from its seeded start."""
        return {name: self._values[name] for name in sorted(names)}


def _head_rows(rows: Mapping[str, int]) -> int | None:
    heads = [name for name in sorted(rows) if name.endswith(".weight") and name.split(".")[-2] in _HEADS]
    return rows[heads[-1]] if heads else None


def _moved(name: str, tensor: Tensor, differences: Mapping[str, Tensor]) -> Tensor:
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
    for field in _UNSUPPORTED:
        if config.get(field):
            raise MergeError(f"an adapter with {field} cannot be merged here")
    if not _is_number(config.get("lora_alpha")):
        raise MergeError(f"lora_alpha {str(config.get('lora_alpha'))[:64]!r} is no number")
    _check_alphas(config.get("alpha_pattern") or {})


def _check_alphas(alphas: object) -> None:
    """What PEFT would take for a regular expression is refused; `^`, `$` and `|` mean the same to both."""
    if not isinstance(alphas, Mapping) or not all(map(_is_number, alphas.values())):
        raise MergeError("alpha_pattern is no mapping from names of modules to numbers")
    try:
        valid_patterns(tuple(alphas))
    except PatternInvalid as error:
        raise MergeError(f"alpha_pattern: {error}") from error
    for pattern in alphas:
        if "*" in pattern:
            raise MergeError(f"alpha_pattern: {pattern!r} is a regular expression; only names of modules are merged")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
