"""`python -m federated.merge ADAPTER BASE OUT`: a LoRA adapter or a ledger put into its base model's weights.

Needs no model library, holds one file of the base in memory at a time, and keeps its dtypes. OUT is a model folder as
BASE is, with the trained modules (a head) in it.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from federated.contract import LedgerInvalid
from federated.header import HeaderError
from federated.payload import Payload
from federated.printable import printable
from federated.registry import ledger_weights
from federated.weight_changes import LedgerChanges, MergeError, PeftChanges, WeightChanges

_INDEX = "model.safetensors.index.json"
_LEDGER = "ledger.safetensors"


def merge(adapter: Path, base: Path, out: Path) -> None:
    """Write into `out` the model of folder `base` with what folder `adapter` holds put into it.

    Of a LoRA adapter every merged weight is `W + scale * B A`, of a ledger `W` and how far the federation moved it;
    both are computed in float32 and rounded once to W's dtype. `out` must be empty or not exist. Raises MergeError.
    """
    changes = _changes(adapter, base)
    files = _weight_files(base)
    if out.exists() and any(out.iterdir()):
        raise MergeError(f"{out} is not empty")
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


def _changes(adapter: Path, base: Path) -> WeightChanges:
    if not (adapter / _LEDGER).exists():
        config = _read_json(adapter / "adapter_config.json")
        tensors = load_file(adapter / "adapter_model.safetensors")
        return PeftChanges(config, tensors, _names(_weight_files(base)), _read_json(base / "config.json"))
    try:
        ledger = Payload.open(adapter / _LEDGER)
        weights = ledger_weights(ledger)
    except (HeaderError, LedgerInvalid) as error:
        raise MergeError(f"{adapter / _LEDGER}: {error}") from error
    files = _weight_files(base)
    wanted, found = ledger.facts.get("weights_digest"), _weights_digest(files)
    if found != wanted:
        raise MergeError(f"{base} is not the base of this ledger: its weights are {found}, expected {wanted}")
    return LedgerChanges(weights, ledger.facts.get("task_type"), _names(files), _read_json(base / "config.json"))


def _weights_digest(files: Sequence[Path]) -> str:
    """As a worker tells it: of one file its SHA-256, of several that of one line `<name> <sha256>` for each."""
    digests = []
    for file in files:
        with file.open("rb") as opened:
            digests.append((file.name, hashlib.file_digest(opened, "sha256").hexdigest()))
    if len(digests) == 1:
        return "sha256:" + digests[0][1]
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests))
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def _weight_files(base: Path) -> list[Path]:
    if (base / _INDEX).exists():
        return [base / name for name in sorted(set(_read_json(base / _INDEX)["weight_map"].values()))]
    if (base / "model.safetensors").exists():
        return [base / "model.safetensors"]
    raise MergeError(f"{base} has neither model.safetensors nor {_INDEX}")


def _names(files: Sequence[Path]) -> dict[str, Path]:
    names: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            names |= dict.fromkeys(opened.keys(), file)
    return names


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
