"""The safetensors files of a base model: their tensors, read from the headers alone, and their digest."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from federated.digests import weights_sha256

INDEX = "model.safetensors.index.json"
_ONE_FILE = "model.safetensors"


class MergeError(ValueError):
    """An adapter that cannot be merged into this base. The message names the file, field or tensor."""


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """The files of a base model.

    `shapes`, `dtypes` (safetensors names, such as BF16) and `places` (files) are by stored name of each tensor.
    """

    folder: Path
    files: tuple[Path, ...]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    places: Mapping[str, Path]

    @classmethod
    def of(cls, folder: Path) -> "BaseFiles":
        """The files in a model's folder. Raises MergeError if there are none."""
        files = _files(folder)
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, str] = {}
        places: dict[str, Path] = {}
        for file in files:
            with safe_open(file, framework="pt") as reader:
                for name in reader.keys():  # noqa: SIM118
                    header = reader.get_slice(name)
                    shapes[name], dtypes[name] = tuple(header.get_shape()), header.get_dtype()
                    places[name] = file
        return cls(folder, files, shapes, dtypes, places)

    @property
    def in_shards(self) -> bool:
        """Whether an index maps tensors to files."""
        return _is_in_shards(self.folder)

    @property
    def config(self) -> dict[str, Any]:
        """`config.json`. Raises MergeError."""
        return read_json(self.folder / "config.json")

    def tensor(self, name: str) -> Tensor:
        """One tensor by its stored name."""
        with safe_open(self.places[name], framework="pt") as reader:
            value: Tensor = reader.get_tensor(name)
        return value

    def load(self, file: Path) -> dict[str, Tensor]:
        """All tensors of one file by their stored names."""
        return load_file(file)

    def digest(self) -> str:
        """The digest of the weights, as workers compute it."""
        return "sha256:" + weights_sha256(self.files)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises MergeError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MergeError(f"{path} is missing") from None
    except ValueError as error:
        raise MergeError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise MergeError(f"{path} is not a JSON object")
    return document


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON object with sorted keys."""
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _is_in_shards(folder: Path) -> bool:
    # Beside a single file, transformers and the workers ignore an index.
    return (folder / INDEX).exists() and not (folder / _ONE_FILE).exists()


def _files(folder: Path) -> tuple[Path, ...]:
    if _is_in_shards(folder):
        return tuple(folder / name for name in sorted(set(read_json(folder / INDEX)["weight_map"].values())))
    if (folder / _ONE_FILE).exists():
        return (folder / _ONE_FILE,)
    raise MergeError(f"{folder} has neither {_ONE_FILE} nor {INDEX}")
