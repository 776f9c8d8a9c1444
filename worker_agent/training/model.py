"""Base models: the ones this node allows, the digest of their weights, and loading.

Weights are read from safetensors alone.
"""

import contextlib
import functools
import importlib.util
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from federated import digests
from federated.contract import AnyTrainable
from federated.protocol import BaseModelReference, TaskDefinition
from federated.trainable import Prefix, TaskType
from worker_agent.settings import AgentSettings
from worker_agent.training.device import spread_over
from worker_agent.training.job_errors import ModelError

ONE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# In these models, positions start after the padding token's id.
POSITIONS_AFTER_PADDING = {
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}
_POSITIONS = ("max_position_embeddings", "max_seq_len")
DEFAULT_REVISION = "main"
DOWNLOAD_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model"]


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base model in evaluation mode. `new`: parameters that its files lack; `task_type`: PEFT's name."""

    model: PreTrainedModel
    new: frozenset[str]
    task_type: TaskType


@dataclass(frozen=True, slots=True)
class Placement:
    """Device and format of a base model; part of the key of a loaded model."""

    device: torch.device
    dtype: torch.dtype
    quantization: str


def model_folder(settings: AgentSettings, model_id: str, revision: str | None = None) -> Path:
    """The folder of an allowed base model, downloaded from the hub if needed (unless HF_HUB_OFFLINE).

    The revision is the one that this node's owner fixed, or the hub's default. A federation that names another is
    refused. A folder has no revision; its weights are checked against the federation's digest.

    Raises ModelError (model_missing, model_mismatch).
    """
    if model_id not in settings.models:
        names = ", ".join(sorted(settings.models)) or "none"
        raise ModelError("model_missing", f"this node does not allow the base model {model_id!r}; it allows: {names}")
    source = settings.models[model_id]
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or source.startswith((".", "~")):
        raise ModelError("model_missing", f"{model_id}: there is no folder {folder}")
    hub_id, _, own_revision = source.partition("@")
    present = own_revision or DEFAULT_REVISION
    if revision not in (None, present):
        detail = f"the federation wants revision {revision[:80]!r} of {model_id}, this node has {present!r}"
        raise ModelError("model_mismatch", f'{detail}; its owner can set: {model_id} = "{hub_id}@REVISION"')
    return _download(hub_id, own_revision or None)


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=DOWNLOAD_PATTERNS))
    except (OSError, ValueError) as error:
        raise ModelError("model_missing", f"{hub_id} is neither a folder here nor available: {error}") from error


def weights_sha256(folder: Path) -> str:
    """Hex digest of a model's weights, as in `federated.digests`. Raises ModelError (model_missing)."""
    return digests.weights_sha256(weights_files(folder), lambda path: _cached_sha256(*_identity(path)))


def weights_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, sorted by name. Raises ModelError (model_missing)."""
    index = folder / INDEX_FILE
    names = {ONE_FILE}
    if index.exists() and not (folder / ONE_FILE).exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise ModelError("model_missing", f"{folder} has no {missing[0]} (weights are read from safetensors alone)")
    return [folder / name for name in sorted(names)]


def _identity(path: Path) -> tuple[str, int, int]:
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=1024)
def _cached_sha256(path: str, size_bytes: int, changed_ns: int) -> str:
    return digests.file_sha256(Path(path))


def check_weights(reference: BaseModelReference, folder: Path) -> str:
    """Hex digest of the weights in `folder`. Raises ModelError (model_mismatch) if the federation's differs."""
    digest = weights_sha256(folder)
    if reference.weights_sha256 not in (None, digest):
        expected_digest = str(reference.weights_sha256)
        detail = (
            f"the weights of {reference.id} here are {digest[:12]}…, the federation's are {expected_digest[:12]}…"
        )
        raise ModelError("model_mismatch", detail)
    return digest


def check_model(settings: AgentSettings, model_id: str) -> str:
    """Hex digest of an allowed model's weights; also reads its configuration. Raises ModelError (model_missing)."""
    folder = model_folder(settings, model_id)
    _config(folder)
    return weights_sha256(folder)


def _config(folder: Path) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise ModelError("model_missing", f"the configuration in {folder} cannot be read: {error}") from error
    return config


@dataclass(frozen=True, slots=True)
class TextFacts:
    """Facts about a model's input. `most_tokens`: the longest input (None: the tokenizer's limit).

    `segments`: it distinguishes a second text from the first. `fills_gaps`: it has a masked-language head.
    """

    most_tokens: int | None
    segments: bool
    fills_gaps: bool


def text_facts(folder: Path) -> TextFacts:
    """Facts from a model's configuration. Raises ModelError (model_missing)."""
    whole = _config(folder)
    config: Any = whole.get_text_config()
    positions = next((limit for name in _POSITIONS if (limit := getattr(config, name, None))), None)
    if positions is not None and config.model_type in POSITIONS_AFTER_PADDING:
        positions -= config.pad_token_id + 1
    return TextFacts(positions, getattr(config, "type_vocab_size", 0) > 1, type(whole) in MODEL_FOR_MASKED_LM_MAPPING)


def checkpoint_activations(model: PreTrainedModel, trainable: AnyTrainable) -> None:
    """Recompute activations in the backward pass, except with a prefix, which the recomputation would lose."""
    if isinstance(trainable, Prefix):
        return
    current: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    current({"use_reentrant": False})


def load_base(folder: Path, task: TaskDefinition, placement: Placement, pad_id: int | None) -> LoadedBase:
    """The base model for a task, in evaluation mode. Batches are padded with `pad_id`.

    Raises ModelError (model_missing, model_incomplete, quantization_missing, cloze_impossible).
    """
    options: dict[str, Any] = {"dtype": placement.dtype, "use_safetensors": True, "output_loading_info": True}
    options |= _spread(folder, placement)
    kind, task_type = _kind(folder, task)
    if task_type == "SEQ_CLS":
        names = dict(enumerate(task.labels or ()))
        options |= {"id2label": names, "label2id": {name: index for index, name in names.items()}}
        options["ignore_mismatched_sizes"] = True
    try:
        with _quiet():
            model, info = kind.from_pretrained(str(folder), **options)
    except (OSError, ValueError) as error:
        purpose = task.task if task.cloze is None else "a cloze"
        raise ModelError("model_missing", f"{folder} cannot be loaded for {purpose}: {error}") from error
    _check_complete(folder, task, info["missing_keys"], model.base_model_prefix)
    if "device_map" not in options:
        model.to(placement.device)
    model.config.use_cache = False
    # A classifier finds the last token of a text by this id. A multimodal model reads it in its inner configuration.
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = pad_id
    replacements = {entry[0] for entry in info["mismatched_keys"]}
    return LoadedBase(model.eval(), frozenset(info["missing_keys"]) | replacements, task_type)


def _check_complete(folder: Path, task: TaskDefinition, missing_weights: Collection[str], backbone: str) -> None:
    """Raise ModelError unless all missing weights belong to a classifier's head or a pooler."""
    if task.cloze is not None and missing_weights:
        raise ModelError(
            "cloze_impossible", f"{folder} has no language head: {min(missing_weights)!r} is not in its files"
        )
    classifier = task.task == "sequence_classification"
    lacking = [
        name
        for name in missing_weights
        if not classifier or (name.split(".")[0] == backbone and "pooler" not in name.split("."))
    ]
    if lacking:
        detail = f"{len(lacking)} weights that {task.task} needs, {min(lacking)!r} among them, are not in {folder}"
        raise ModelError("model_incomplete", f"{detail}; use the whole model, or one that was built for this task")


def _kind(folder: Path, task: TaskDefinition) -> tuple[Any, TaskType]:
    if task.task == "sequence_classification" and task.cloze is None:
        return AutoModelForSequenceClassification, "SEQ_CLS"
    if task.cloze is not None and text_facts(folder).fills_gaps:
        # PEFT has no type for masked-language models. This one returns a model's own output unchanged.
        return AutoModelForMaskedLM, "FEATURE_EXTRACTION"
    return AutoModelForCausalLM, "CAUSAL_LM"


def _spread(folder: Path, placement: Placement) -> dict[str, Any]:
    if placement.quantization != "none":
        return {"quantization_config": _quantization_config(placement), "device_map": {"": placement.device}}
    device_map = spread_over(placement.device, sum(path.stat().st_size for path in weights_files(folder)))
    return {} if device_map is None else {"device_map": device_map}


def _quantization_config(placement: Placement) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        detail = f"quantization = {placement.quantization!r} needs bitsandbytes: pip install bitsandbytes"
        raise ModelError("quantization_missing", detail)
    from transformers import BitsAndBytesConfig

    make: Any = BitsAndBytesConfig
    if placement.quantization == "8bit":
        return make(load_in_8bit=True)
    return make(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=placement.dtype)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # A new head is expected, but the library warns about it, and it draws a bar for every load.
    library: Any = transformers_logging
    verbosity, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if bars:
            library.enable_progress_bar()
