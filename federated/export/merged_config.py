"""`config.json` of a merged folder: the base's, with what the training made of the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from federated.export.base_files import BaseFiles

_NESTED = ("text_config", "decoder", "text_encoder", "generator")
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class ModelChanges:
    """What a configuration says of a trained model. `rows`: of a classifier's head; `labels`: their names, if known.

    `parted`: whether tensors that the base shares differ. None: as in the base.
    """

    architecture: str | None = None
    rows: int | None = None
    labels: Sequence[str] = ()
    pad_id: int | None = None
    parted: bool = False


def merged_config(base: BaseFiles, changes: ModelChanges) -> dict[str, Any]:
    """The base's configuration with these changes, and the number format of the base's files."""
    config = dict(base.config)
    if changes.architecture is not None:
        config["architectures"] = [changes.architecture]
    if changes.rows is not None:
        config |= _labels(config, changes.rows, changes.labels)
        # Trained to tell one class of several, whatever the base's own head did.
        config.pop("problem_type", None)
    if changes.pad_id is not None:
        config = _everywhere(config, {"pad_token_id": changes.pad_id}, only_known=False)
    if changes.parted:
        config = _everywhere(config, {"tie_word_embeddings": False}, only_known=False)
    formats = {_DTYPES[dtype] for dtype in base.dtypes.values() if dtype in _DTYPES}
    if len(formats) == 1:
        written = formats.pop()
        config = _everywhere(config, {"dtype": written, "torch_dtype": written}, only_known=True)
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


def _everywhere(config: dict[str, Any], fields: Mapping[str, Any], *, only_known: bool) -> dict[str, Any]:
    """The configuration, and that of the text model within it, with these fields."""
    nested = {
        name: _everywhere(config[name], fields, only_known=only_known)
        for name in _NESTED
        if isinstance(config.get(name), dict)
    }
    wanted = {name: value for name, value in fields.items() if not only_known or config.get(name) is not None}
    return config | wanted | nested
