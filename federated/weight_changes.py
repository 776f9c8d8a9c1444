"""What an adapter or a ledger does to the tensors of a base model, one tensor after another.

A base's files may name tensors without the prefix that the trained model has before them: a classifier's adapter says
`bert.encoder`, BERT's own files `encoder`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from federated.contract import LedgerWeights
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
_LARGEST = 1e30
# Their projections are Conv1D: the weight is stored as (in, out).
_TRANSPOSED_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}


class MergeError(ValueError):
    """An adapter that cannot be merged into this base; the text names the file, field or tensor."""


class WeightChanges(Protocol):
    """Changes of a base model. Raises MergeError where they do not fit a tensor."""

    def applied(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """One file's tensors, changed, under the names of the model that was trained."""

    def added(self) -> dict[str, Tensor]:
        """Tensors that the base does not have, such as a classifier's head."""

    def model_config(self) -> dict[str, Any]:
        """The base's configuration, with as many labels as the trained head has."""


class PeftChanges:
    """What a LoRA adapter does to the tensors of its base."""

    def __init__(
        self,
        config: Mapping[str, Any],
        adapter: Mapping[str, Tensor],
        base: Mapping[str, Path],
        model: dict[str, Any],
    ) -> None:
        _check_config(config)
        self._config = config
        self._model = model
        self._transposed = bool(config.get("fan_in_fan_out")) or model.get("model_type") in _TRANSPOSED_MODELS
        self._pairs: dict[str, dict[str, Tensor]] = {}
        self._values: dict[str, Tensor] = {}
        for stored, tensor in adapter.items():
            name = stored.removeprefix(_PEFT_PREFIX).replace(".modules_to_save.", ".").replace(".base_layer.", ".")
            module, factor = _split_factor(name)
            if factor:
                self._pairs.setdefault(module, {})[factor] = tensor
            else:
                self._values[name] = tensor
        self._prefix = _prefix([f"{module}.weight" for module in self._pairs], base)
        self._used: set[str] = set()
        known = {self._prefix + name for name in base}
        for module in self._pairs:
            if f"{module}.weight" not in known:
                raise MergeError(f"the base has no weight for the adapted module {module!r}")
        self._new = sorted(self._values.keys() - known)

    def applied(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """One file's tensors, changed, under the names of the model that the adapter was trained on."""
        for stored, tensor in tensors.items():
            name = self._prefix + stored
            value = _replaced(name, tensor, self._values[name]) if name in self._values else tensor
            pair = self._pairs.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
            yield name, value if pair is None else self._merged(name.removesuffix(".weight"), value, pair)

    def added(self) -> dict[str, Tensor]:
        """Trained tensors that the base does not have, such as a classifier's head."""
        return {name: self._values[name] for name in self._new}

    def model_config(self) -> dict[str, Any]:
        """The base's configuration, with as many labels as the adapter's head has."""
        return _with_labels(self._model, self._config.get("task_type"), {n: len(self._values[n]) for n in self._new})

    def _merged(self, module: str, weight: Tensor, pair: Mapping[str, Tensor]) -> Tensor:
        embedding = "lora_embedding_A" in pair
        names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        if any(name not in pair for name in names):
            raise MergeError(f"the adapter has only {', '.join(sorted(pair))} of module {module!r}")
        a, b = (pair[name].float() for name in names)
        change = (b @ a) * self._scale(module, rank=len(a))
        if embedding or self._transposed:
            change = change.T
        if change.shape != weight.shape:
            raise MergeError(f"module {module!r} has shape {list(weight.shape)}, its factors {list(change.shape)}")
        return (weight.float() + change).to(weight.dtype).contiguous()

    def _scale(self, module: str, rank: int) -> float:
        alpha: float = first_fitting(self._config.get("alpha_pattern") or {}, module, self._config["lora_alpha"])
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)


class LedgerChanges:
    """What a ledger's weights do to the tensors of its base: differences are added in float32 and rounded once.

    Raises MergeError if the base lacks a tensor that the ledger changes.
    """

    def __init__(
        self, weights: LedgerWeights, task_type: str | None, base: Mapping[str, Path], model: dict[str, Any]
    ) -> None:
        self._differences = weights.differences
        self._values = weights.values
        self._task_type = task_type
        self._model = model
        self._prefix = _prefix(list(self._differences), base)
        known = {self._prefix + name for name in base}
        for name in self._differences:
            if name not in known:
                raise MergeError(f"the base has no tensor {name!r}, which the ledger changes")
        self._new = sorted(set(self._values) - known)

    def applied(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """One file's tensors, changed, under the names of the model that was trained."""
        for stored, tensor in tensors.items():
            name = self._prefix + stored
            if name in self._values:
                yield name, self._values[name]
            elif name in self._differences:
                yield name, _moved(name, tensor, self._differences)
            else:
                yield name, tensor

    def added(self) -> dict[str, Tensor]:
        """Tensors that the base does not have: a head, and what never moved from its seeded start."""
        return {name: self._values[name] for name in self._new}

    def model_config(self) -> dict[str, Any]:
        """The base's configuration, with as many labels as the trained head has."""
        rows = {name: self._values.shape(name)[0] for name in self._values}
        return _with_labels(self._model, self._task_type, rows)


def _moved(name: str, tensor: Tensor, differences: Mapping[str, Tensor]) -> Tensor:
    difference = differences[name]
    if tensor.shape != difference.shape:
        raise MergeError(f"tensor {name!r} has shape {list(tensor.shape)}, the ledger's {list(difference.shape)}")
    return (tensor.float() + difference).to(tensor.dtype)


def _with_labels(model: dict[str, Any], task_type: str | None, rows: Mapping[str, int]) -> dict[str, Any]:
    """`rows`: tensors that stand beside the base's, and the length of each."""
    heads = [name for name in sorted(rows) if name.endswith(("classifier.weight", "score.weight", "out_proj.weight"))]
    if task_type != "SEQ_CLS" or not heads:
        return model
    count = rows[heads[-1]]
    if len(model.get("id2label", {})) == count:
        return model
    labels = {str(index): f"LABEL_{index}" for index in range(count)}
    return {**model, "id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}}


def _split_factor(name: str) -> tuple[str, str | None]:
    for factor in _FACTORS:
        module, separator, rest = name.partition(f".{factor}")
        if separator and rest in ("", ".weight"):
            return module, factor
    return name, None


def _prefix(adapted: Sequence[str], base: Mapping[str, Path]) -> str:
    """What the adapter's names have before those of the base: a classifier's adapter says `bert.`, BERT does not."""
    first = next(iter(adapted), "")
    parts = first.split(".")
    for skipped in range(len(parts)):
        if ".".join(parts[skipped:]) in base:
            return "".join(f"{part}." for part in parts[:skipped])
    return ""


def _replaced(name: str, tensor: Tensor, value: Tensor) -> Tensor:
    if tensor.shape != value.shape:
        raise MergeError(f"tensor {name!r} has shape {list(tensor.shape)}, the adapter's {list(value.shape)}")
    return value.to(tensor.dtype)


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
