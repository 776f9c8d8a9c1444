"""The `config.json` of a merged model: the base's configuration with the changes of the training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from federated.export.base_files import BaseFiles

_SUB_CONFIGS = ("text_config", "decoder", "text_encoder", "generator")
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class ModelChanges:
    """Changes to the base's configuration. None: as in the base.

    `rows`: rows of a classifier's head. `labels`: their names, if known. `unties`: the training unties shared
    tensors.
    """

    architecture: str | None = None
    rows: int | None = None
    labels: Sequence[str] = ()
    pad_id: int | None = None
    unties: bool = False


def merged_config(base: BaseFiles, changes: ModelChanges) -> dict[str, Any]:
    """The base's configuration with these changes and the dtype of the base's files."""
    config = dict(base.config)
    if changes.architecture is not None:
        config["architectures"] = [changes.architecture]
    if changes.rows is not None:
        config |= _labels(config, changes.rows, changes.labels)
        # The training is for single-label classification, whatever the base's own head is for.
        config.pop("problem_type", None)
    if changes.pad_id is not None:
        config = _everywhere(config, {"pad_token_id": changes.pad_id}, existing_only=False)
    if changes.unties:
        config = _everywhere(config, {"tie_word_embeddings": False}, existing_only=False)
    formats = {_DTYPES[name] for name in base.dtypes.values() if name in _DTYPES}
    if len(formats) == 1:
        dtype = formats.pop()
        config = _everywhere(config, {"dtype": dtype, "torch_dtype": dtype}, existing_only=True)
    return config


def _labels(config: Mapping[str, Any], rows: int, names: Sequence[str]) -> dict[str, Any]:
    if len(names) != rows:
        if len(config.get("id2label", {})) == rows:
            return {}
        names = [f"LABEL_{index}" for index in range(rows)]
    return {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }


def _everywhere(config: dict[str, Any], fields: Mapping[str, Any], *, existing_only: bool) -> dict[str, Any]:
    """The configuration and its sub-configurations with these fields."""
    parts = {
        name: _everywhere(config[name], fields, existing_only=existing_only)
        for name in _SUB_CONFIGS
        if isinstance(config.get(name), dict)
    }
    changes = {name: value for name, value in fields.items() if not existing_only or config.get(name) is not None}
    return config | changes | parts
