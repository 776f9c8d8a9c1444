"""Forms in which a base model's folder comes: other names, several files, narrower numbers, something missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

_FILE = "model.safetensors"
_SHARDS = 3


def with_gamma_and_beta(folder: Path) -> None:
    """Norms named as BERT's first files name them."""
    _rewrite(folder, lambda tensors: {_old_name(name): value for name, value in tensors.items()})


def backbone_alone(folder: Path) -> None:
    """An encoder's files without its language head, its tensors named without the backbone's name."""
    _rewrite(folder, lambda tensors: {
        name.removeprefix("bert."): value for name, value in tensors.items() if name.startswith("bert.")
    })  # fmt: skip
    _configure(folder, architectures=["BertModel"])


def with_another_head(folder: Path) -> None:
    """An encoder that somebody made a classifier of two labels."""
    backbone_alone(folder)
    head = {"classifier.weight": torch.full((2, 32), 0.5), "classifier.bias": torch.full((2,), 0.5)}
    _rewrite(folder, lambda tensors: {f"bert.{name}": value for name, value in tensors.items()} | head)
    names = {"0": "no", "1": "yes"}
    _configure(folder, architectures=["BertForSequenceClassification"], id2label=names, problem_type="regression")


def without_head(folder: Path) -> None:
    """A decoder's files without its language head."""
    _rewrite(folder, lambda tensors: {
        name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")
    })  # fmt: skip
    _configure(folder, architectures=["LlamaModel"])


def with_both_copies(folder: Path) -> None:
    """The tied matrix under both of its names, as files that were made of a torch file have it."""
    _rewrite(folder, lambda tensors: {**tensors, "lm_head.weight": tensors["transformer.wte.weight"].clone()})


def in_shards(folder: Path) -> None:
    """Three files, their tensors dealt out one by one, and an index."""
    tensors = load_file(folder / _FILE)
    (folder / _FILE).unlink()
    names = [f"model-{number:05d}-of-{_SHARDS:05d}.safetensors" for number in range(1, _SHARDS + 1)]
    for place, name in enumerate(names):
        part = {key: tensors[key] for key in sorted(tensors)[place::_SHARDS]}
        save_file(part, folder / name, metadata={"format": "pt"})
    total = sum(value.numel() * value.element_size() for value in tensors.values())
    places = {key: names[index % _SHARDS] for index, key in enumerate(sorted(tensors))}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def in_float16(folder: Path) -> None:
    """All numbers in float16."""
    _rewrite(folder, lambda tensors: {name: value.half() for name, value in tensors.items()})
    _configure(folder, dtype="float16")


def in_bfloat16(folder: Path) -> None:
    """All numbers in bfloat16."""
    _rewrite(folder, lambda tensors: {name: value.bfloat16() for name, value in tensors.items()})
    _configure(folder, dtype="bfloat16")


def with_a_token_too_many(folder: Path) -> None:
    """A tokenizer that knows more tokens than the model has embeddings, the last of them by a word."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    rows = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    tokenizer.add_tokens([f"word{number}" for number in range(rows - len(tokenizer))] + ["purple"])
    tokenizer.save_pretrained(folder)


def without_tokenizer(folder: Path) -> None:
    """No file of a tokenizer."""
    for file in folder.glob("*token*.json"):
        file.unlink()


def with_another_padding_token(folder: Path) -> None:
    """A tokenizer whose padding token is another than the nested configuration says."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(3)
    tokenizer.save_pretrained(folder)


def _rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    changed = {name: torch.clone(value) for name, value in change(load_file(folder / _FILE)).items()}
    save_file(changed, folder / _FILE, metadata={"format": "pt"})


def _old_name(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def _configure(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    document = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")
