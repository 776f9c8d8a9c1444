"""Merge command: `python -m federated.merge ADAPTER BASE OUT` merges a LoRA adapter or a ledger into its base model.

It holds one file of the base in memory at a time and keeps its dtypes. OUT is a model folder like BASE, with the
trained modules (such as a head) and a matching configuration. For a decoder whose files have the adapter's tensor
names it needs no model library. Otherwise it gets the names from transformers, if that is installed.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from federated.contract import LedgerInvalid
from federated.export.base_files import INDEX, BaseFiles, MergeError, read_json, write_json
from federated.export.base_names import BaseNames, TrainingTargets, have_same_names, plain_names
from federated.export.merged_config import ModelChanges, merged_config
from federated.export.weight_deltas import LedgerChanges, PeftChanges, Source, WeightChanges
from federated.payloads.header import HeaderError
from federated.payloads.payload import Payload
from federated.printable import printable
from federated.registry import ledger_weights

_LEDGER = "ledger.safetensors"
_PROVENANCE = "provenance.json"
_TOKENIZER = "tokenizer_config.json"


def merge(adapter: Path, base: Path, out: Path) -> None:
    """Merge the adapter or ledger in folder `adapter` into the model in folder `base` and write the result to `out`.

    With a LoRA adapter every merged weight is `W + scale * B A`, with a ledger `W` plus the ledger's difference. Both
    are computed in float32 and rounded once to W's dtype. If training unties tensors that the base shares, both are
    written. `out` must be empty or missing. Raises MergeError.
    """
    source, files = _open(adapter, base)
    names = _names(files, source.targets)
    changes = WeightChanges(source, names)
    if out.exists() and any(out.iterdir()):
        raise MergeError(f"{out} is not empty")
    out.mkdir(parents=True, exist_ok=True)
    _copy_other_files(base, out)
    _write_weights(files, changes, out)
    padding = names.padding if source.targets.task_type == "SEQ_CLS" else None
    model_changes = ModelChanges(
        architecture=names.architecture,
        rows=source.head_rows if source.targets.task_type == "SEQ_CLS" else None,
        labels=_labels(adapter),
        pad_id=None if padding is None else padding[0],
        unties=changes.unties,
    )
    write_json(out / "config.json", merged_config(files, model_changes))
    if padding is not None:
        _set_padding_token(out, padding[1])


def _open(adapter: Path, base: Path) -> tuple[Source, BaseFiles]:
    if not (adapter / _LEDGER).exists():
        config = read_json(adapter / "adapter_config.json")
        tensors = load_file(adapter / "adapter_model.safetensors")
        files = BaseFiles.of(base)
        _check_digest(files, _provenance(adapter).get("base_weights_digest"), "adapter")
        return PeftChanges(config, tensors, files.config.get("model_type")), files
    try:
        ledger = Payload.open(adapter / _LEDGER)
        weights = ledger_weights(ledger)
    except (HeaderError, LedgerInvalid) as error:
        raise MergeError(f"{adapter / _LEDGER}: {error}") from error
    files = BaseFiles.of(base)
    _check_digest(files, ledger.facts.get("weights_digest", "missing"), "ledger")
    return LedgerChanges(weights, ledger.facts.get("task_type")), files


def _check_digest(base: BaseFiles, expectation: str | None, what: str) -> None:
    if expectation is None:
        return
    digest = base.digest()
    if digest != expectation:
        detail = f"its weights are {digest}, expected {expectation}"
        raise MergeError(f"{base.folder} is not the base of this {what}: {detail}")


def _names(base: BaseFiles, targets: TrainingTargets) -> BaseNames:
    if have_same_names(base, targets):
        return BaseNames(dict(zip(base.shapes, base.shapes, strict=True)))
    try:
        from federated.export.library_names import library_names

        return library_names(base, targets)
    except ImportError:
        return plain_names(base, targets)


def _write_weights(base: BaseFiles, changes: WeightChanges, out: Path) -> None:
    sizes: dict[str, int] = {}
    files: dict[str, str] = {}
    for file in base.files:
        tensors = dict(changes.apply_to(load_file(file)))
        if file == base.files[-1]:
            tensors |= changes.new_tensors()
        save_file(tensors, out / file.name, metadata={"format": "pt"})
        files |= dict.fromkeys(tensors, file.name)
        sizes |= {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    if base.in_shards:
        write_json(out / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files})


def _provenance(adapter: Path) -> dict[str, Any]:
    """The coordinator's provenance document of a downloaded adapter. Empty for an adapter of another source."""
    return read_json(adapter / _PROVENANCE) if (adapter / _PROVENANCE).exists() else {}


def _labels(adapter: Path) -> tuple[str, ...]:
    definition = _provenance(adapter).get("definition")
    task = definition.get("task") if isinstance(definition, dict) else None
    labels = task.get("labels") if isinstance(task, dict) else None
    return tuple(map(str, labels)) if isinstance(labels, list) else ()


def _copy_other_files(base: Path, out: Path) -> None:
    for file in sorted(base.iterdir()):
        weights = file.suffix in {".safetensors", ".bin", ".pt", ".h5", ".msgpack", ".onnx"}
        if file.is_file() and not weights and file.name not in {INDEX, "config.json"}:
            shutil.copy2(file, out / file.name)


def _set_padding_token(out: Path, token: str) -> None:
    """Set the padding token of a tokenizer without one to that of the classifier's training."""
    if (out / _TOKENIZER).exists():
        config = read_json(out / _TOKENIZER)
        if config.get("pad_token") is None:
            write_json(out / _TOKENIZER, config | {"pad_token": token})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 1 and prints one line to standard error if the merge fails."""
    parser = argparse.ArgumentParser(
        prog="python -m federated.merge", description="Merge a LoRA adapter or a ledger into its base"
    )
    parser.add_argument("adapter", type=Path, help="folder with the files of an adapter or ledger")
    parser.add_argument("base", type=Path, help="folder of the base model (safetensors)")
    parser.add_argument("out", type=Path, help="folder to write the merged model into")
    options = parser.parse_args(arguments)
    try:
        with torch.inference_mode():
            merge(options.adapter, options.base, options.out)
    except (MergeError, OSError) as error:
        print(f"merge: {printable(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
