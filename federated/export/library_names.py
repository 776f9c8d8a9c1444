"""Mapping of tensor names by transformers, which builds the model without weights and renames the files' tensors.

This is the only module of the package that uses a model library. It is imported only if names alone are ambiguous.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from federated.export.base_files import BaseFiles, MergeError
from federated.export.base_names import BaseNames, TrainingTargets

_AUTOMATIC = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}


def library_names(base: BaseFiles, targets: TrainingTargets) -> BaseNames:
    """The names of a base's tensors in the trained model.

    Raises ImportError without transformers 5, MergeError if it cannot build a model from the folder.
    """
    import transformers
    from transformers.core_model_loading import rename_source_key  # noqa: F401 - only version 5 has it

    with _quiet(transformers):
        config = _config(transformers, base)
        model = _without_weights(transformers, config, targets)
        places, parts, products = _places(model, base)
        ties = _ties(model, base, {name: key for key, name in places.items()})
        state = model.state_dict()
        return BaseNames(
            places=places,
            parts=frozenset(parts),
            missing=frozenset(state.keys() - set(places.values()) - products - ties.keys()),
            ties=ties,
            separable=not ties or _separable(transformers, config, targets),
            architecture=type(model).__name__,
            padding=_padding(transformers, base, model) if targets.task_type == "SEQ_CLS" else None,
        )


def _config(transformers: Any, base: BaseFiles) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(str(base.folder))
    except (OSError, ValueError, KeyError) as error:
        raise MergeError(f"transformers cannot read {base.folder / 'config.json'}: {error}") from error


def _without_weights(transformers: Any, config: Any, targets: TrainingTargets) -> Any:
    kind = _kind(transformers, config, targets.task_type)
    try:
        with torch.device("meta"):
            return kind(config)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise MergeError(f"transformers makes no model of a {config.model_type} for this adapter: {error}") from error


def _kind(transformers: Any, config: Any, task_type: str | None) -> Any:
    if task_type in _AUTOMATIC:
        return getattr(transformers, _AUTOMATIC[task_type]).from_config
    # PEFT has no task type for masked language models. Workers use this one.
    if task_type == "FEATURE_EXTRACTION" and type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING:
        return transformers.AutoModelForMaskedLM.from_config
    architecture: Any = getattr(transformers, next(iter(config.architectures or ()), ""), None)
    of_library = isinstance(architecture, type) and issubclass(architecture, transformers.PreTrainedModel)
    if of_library:
        return architecture._from_config
    return transformers.AutoModel.from_config


def _places(model: Any, base: BaseFiles) -> tuple[dict[str, str], set[str], set[str]]:
    """Names by stored name, the stored parts of combined tensors, and the names of combined tensors."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    state, prefix = model.state_dict(), model.base_model_prefix
    changes: Any = get_model_conversion_mapping(model)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    places: dict[str, str] = {}
    parts: set[str] = set()
    products: set[str] = set()
    for source_key in sorted(base.shapes):
        name, pattern = rename_source_key(source_key, renamings, converters, prefix, state)
        if name not in state and source_key in state:
            name, pattern = rename_source_key(source_key, [], [], prefix, state)
        if name not in state:
            continue
        if pattern is None:
            places[source_key] = name
        else:
            parts.add(source_key)
            products |= _products(name, pattern, converters)
    return places, parts, products


def _products(name: str, pattern: str, converters: list[Any]) -> set[str]:
    """The names of all results of the conversion with this source pattern. `name` is that of the first."""
    targets = next(change.target_patterns for change in converters if pattern in change.source_patterns)
    return {name.replace(targets[0], target, 1) for target in targets}


def _ties(model: Any, base: BaseFiles, keys: Mapping[str, str]) -> dict[str, str]:
    """Names that share a tensor with a name in the files. Tensors that differ in the files are not shared."""
    groups: dict[str, list[str]] = {}
    for target, source in model.all_tied_weights_keys.items():
        groups.setdefault(source, [source]).append(target)
    ties = {}
    for group in groups.values():
        first = next((name for name in group if name in keys), None)
        for name in group:
            if first in (None, name):
                continue
            if name not in keys or torch.equal(base.tensor(keys[name]), base.tensor(keys[str(first)])):
                ties[name] = str(first)
    return ties


def _separable(transformers: Any, config: Any, targets: TrainingTargets) -> bool:
    """Whether `tie_word_embeddings: false` unties all tensors without another effect on the computation."""
    if config.is_encoder_decoder and targets.task_type != "SEQ_CLS":
        # T5 scales the last hidden states where its embeddings are tied.
        return False
    untied_config = copy.deepcopy(config)
    for part in (untied_config, untied_config.get_text_config()):
        part.tie_word_embeddings = False
    return not _without_weights(transformers, untied_config, targets).all_tied_weights_keys


def _padding(transformers: Any, base: BaseFiles, model: Any) -> tuple[int, str] | None:
    """Id and token of a worker's padding, if the model's configuration must contain them.

    A decoder's classifier reads the last token before the padding. An encoder may derive positions from the id in its
    configuration, so that is not changed.
    """
    config = model.config.get_text_config()
    if not hasattr(model, "score") and getattr(config, "pad_token_id", None) is not None:
        return None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(base.folder))
    except (OSError, ValueError, KeyError):
        return None
    token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token
    return None if token is None else (int(tokenizer.convert_tokens_to_ids(token)), str(token))


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    library = transformers.utils.logging
    verbosity = library.get_verbosity()
    library.set_verbosity_error()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
