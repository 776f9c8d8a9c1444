"""`python -m federated.merge ADAPTER BASE OUT`: a LoRA adapter put into its base model's weights.

Needs torch and safetensors alone, holds one file of the base in memory at a time, and keeps its dtypes. OUT is a
model folder as BASE is, with the adapter's trained modules (a head) in it.
"""

import argparse
import json
import math
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

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
_INDEX = "model.safetensors.index.json"
# Their projections are Conv1D: the weight is stored as (in, out).
_TRANSPOSED_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}


class MergeError(ValueError):
    """An adapter that cannot be merged into this base; the text names the file, field or tensor."""


def merge(adapter: Path, base: Path, out: Path) -> None:
    """Write into `out` the model of folder `base` with the LoRA adapter of folder `adapter` merged into it.

    Every merged weight is `W + scale * B A`, computed in float32 and rounded once to W's dtype. `out` must be empty
    or not exist. Raises MergeError.
    """
    config = _read_json(adapter / "adapter_config.json")
    _check_config(config)
    if out.exists() and any(out.iterdir()):
        raise MergeError(f"{out} is not empty")
    files = _weight_files(base)
    base_names = {name: file for file in files for name in _names(file)}
    changes = _Changes(
        config, load_file(adapter / "adapter_model.safetensors"), base_names, _read_json(base / "config.json")
    )
    out.mkdir(parents=True, exist_ok=True)
    _copy_other_files(base, out)
    sizes: dict[str, int] = {}
    written: dict[str, str] = {}
    for file in files:
        tensors = dict(changes.applied(load_file(file)))
        if file == files[-1]:
            tensors |= changes.added()
        save_file(tensors, out / file.name, metadata={"format": "pt"})
        written |= dict.fromkeys(tensors, file.name)
        sizes |= {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    if (base / _INDEX).exists():
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": written}
        _write_json(out / _INDEX, index)
    _write_json(out / "config.json", changes.model_config())


class _Changes:
    """What an adapter does to the tensors of its base, by the base's names."""

    def __init__(
        self,
        config: Mapping[str, Any],
        adapter: Mapping[str, Tensor],
        base: Mapping[str, Path],
        model: dict[str, Any],
    ) -> None:
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
        heads = [
            name for name in self._new if name.endswith(("classifier.weight", "score.weight", "out_proj.weight"))
        ]
        if self._config.get("task_type") != "SEQ_CLS" or not heads:
            return self._model
        count = len(self._values[heads[-1]])
        if len(self._model.get("id2label", {})) == count:
            return self._model
        labels = {str(index): f"LABEL_{index}" for index in range(count)}
        return {**self._model, "id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}}

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
        patterns: Mapping[str, float] = self._config.get("alpha_pattern") or {}
        # PEFT takes the first pattern that matches the end of the module's name.
        fitting = [key for key in patterns if re.match(rf"(.*\.)?({key})$", module)]
        alpha = float(patterns[fitting[0]] if fitting else self._config["lora_alpha"])
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)


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


def _weight_files(base: Path) -> list[Path]:
    if (base / _INDEX).exists():
        return [base / name for name in sorted(set(_read_json(base / _INDEX)["weight_map"].values()))]
    if (base / "model.safetensors").exists():
        return [base / "model.safetensors"]
    raise MergeError(f"{base} has neither model.safetensors nor {_INDEX}")


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _copy_other_files(base: Path, out: Path) -> None:
    for file in sorted(base.iterdir()):
        weights = file.suffix in {".safetensors", ".bin", ".pt", ".h5", ".msgpack", ".onnx"}
        if file.is_file() and not weights and file.name not in {_INDEX, "config.json"}:
            shutil.copy2(file, out / file.name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MergeError(f"{path} is missing") from None
    if not isinstance(document, dict):
        raise MergeError(f"{path} is not a JSON object")
    return document


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 and one line on standard error where the adapter cannot be merged."""
    parser = argparse.ArgumentParser(
        prog="python -m federated.merge", description="Merge a LoRA adapter into its base"
    )
    parser.add_argument("adapter", type=Path, help="folder with adapter_model.safetensors and adapter_config.json")
    parser.add_argument("base", type=Path, help="folder of the base model (safetensors)")
    parser.add_argument("out", type=Path, help="folder to write the merged model into")
    given = parser.parse_args(arguments)
    try:
        with torch.inference_mode():
            merge(given.adapter, given.base, given.out)
    except (MergeError, OSError) as error:
        print(f"merge: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
