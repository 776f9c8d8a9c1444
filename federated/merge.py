"""`python -m federated.merge ADAPTER BASE OUT`: a LoRA adapter or a ledger put into its base model's weights.

Holds one file of the base in memory at a time, and keeps its dtypes. OUT is a model folder as BASE is, with the
trained modules (a head) in it, and its configuration says what was trained. Needs no model library where a decoder's
tensors are named as the adapter names them; else it asks transformers, if that is there, how the model names them.
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
from federated.export.base_names import BaseNames, Trained, fit_plainly, plain_names
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
    """Write into `out` the model of folder `base` with what folder `adapter` holds put into it.

    Of a LoRA adapter every merged weight is `W + scale * B A`, of a ledger `W` and how far the federation moved it;
    both are computed in float32 and rounded once to W's dtype. Tensors that the base shares and that were trained
    apart are both written. `out` must be empty or not exist. Raises MergeError.
    """
    source, files = _opened(adapter, base)
    names = _names(files, source.trained)
    changes = WeightChanges(source, names)
    if out.exists() and any(out.iterdir()):
        raise MergeError(f"{out} is not empty")
    out.mkdir(parents=True, exist_ok=True)
    _copy_other_files(base, out)
    _write_weights(files, changes, out)
    padding = names.padding if source.trained.task_type == "SEQ_CLS" else None
    described = ModelChanges(
        architecture=names.architecture,
        rows=source.head_rows if source.trained.task_type == "SEQ_CLS" else None,
        labels=_labels(adapter),
        pad_id=None if padding is None else padding[0],
        parted=changes.parted,
    )
    write_json(out / "config.json", merged_config(files, described))
    if padding is not None:
        _tell_tokenizer(out, padding[1])


def _opened(adapter: Path, base: Path) -> tuple[Source, BaseFiles]:
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


def _check_digest(base: BaseFiles, wanted: str | None, what: str) -> None:
    if wanted is None:
        return
    found = base.digest()
    if found != wanted:
        detail = f"its weights are {found}, expected {wanted}"
        raise MergeError(f"{base.folder} is not the base of this {what}: {detail}")


def _names(base: BaseFiles, trained: Trained) -> BaseNames:
    if fit_plainly(base, trained):
        return BaseNames(dict(zip(base.shapes, base.shapes, strict=True)))
    try:
        from federated.export.library_names import library_names

        return library_names(base, trained)
    except ImportError:
        return plain_names(base, trained)


def _write_weights(base: BaseFiles, changes: WeightChanges, out: Path) -> None:
    sizes: dict[str, int] = {}
    written: dict[str, str] = {}
    for file in base.files:
        tensors = dict(changes.applied(load_file(file)))
        if file == base.files[-1]:
            tensors |= changes.added()
        save_file(tensors, out / file.name, metadata={"format": "pt"})
        written |= dict.fromkeys(tensors, file.name)
        sizes |= {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    if base.in_shards:
        write_json(out / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": written})


def _provenance(adapter: Path) -> dict[str, Any]:
    """What the coordinator says of an adapter that was downloaded; nothing of one that was written by a node."""
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


def _tell_tokenizer(out: Path, token: str) -> None:
    """Give a tokenizer that has no padding token the one that the classifier was trained with."""
    if (out / _TOKENIZER).exists():
        config = read_json(out / _TOKENIZER)
        if config.get("pad_token") is None:
            write_json(out / _TOKENIZER, config | {"pad_token": token})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 and one line on standard error where the adapter cannot be merged."""
    parser = argparse.ArgumentParser(
        prog="python -m federated.merge", description="Merge a LoRA adapter or a ledger into its base"
    )
    parser.add_argument("adapter", type=Path, help="folder with an adapter's files, or with ledger.safetensors")
    parser.add_argument("base", type=Path, help="folder of the base model (safetensors)")
    parser.add_argument("out", type=Path, help="folder to write the merged model into")
    given = parser.parse_args(arguments)
    try:
        with torch.inference_mode():
            merge(given.adapter, given.base, given.out)
    except (MergeError, OSError) as error:
        print(f"merge: {printable(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
