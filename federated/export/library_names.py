"""Names as transformers has them: it makes the trained model without weights, and renames the files' tensors for it.

The one module of this package that knows a model library, and it is imported only where names alone leave a doubt.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from federated.export.base_files import BaseFiles, MergeError
from federated.export.base_names import BaseNames, Trained

_AUTOMATIC = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}


def library_names(base: BaseFiles, trained: Trained) -> BaseNames:
    """The names of a base's tensors in the model that was trained.

    Raises ImportError without transformers 5, MergeError where it cannot make a model of the folder.
    """
    import transformers
    from transformers.core_model_loading import rename_source_key  # noqa: F401 - only version 5 has it

    with _quiet(transformers):
        config = _config(transformers, base)
        model = _without_weights(transformers, config, trained)
        places, parts, made = _places(model, base)
        tied = _tied(model, base, {name: stored for stored, name in places.items()})
        state = model.state_dict()
        return BaseNames(
            places=places,
            parts=frozenset(parts),
            lacking=frozenset(state.keys() - set(places.values()) - made - tied.keys()),
            tied=tied,
            separable=not tied or _separable(transformers, config, trained),
            architecture=type(model).__name__,
            padding=_padding(transformers, base, model) if trained.task_type == "SEQ_CLS" else None,
        )


def _config(transformers: Any, base: BaseFiles) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(str(base.folder))
    except (OSError, ValueError, KeyError) as error:
        raise MergeError(f"transformers cannot read {base.folder / 'config.json'}: {error}") from error


def _without_weights(transformers: Any, config: Any, trained: Trained) -> Any:
    kind = _kind(transformers, config, trained.task_type)
    try:
        with torch.device("meta"):
            return kind(config)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise MergeError(f"transformers makes no model of a {config.model_type} for this adapter: {error}") from error


def _kind(transformers: Any, config: Any, task_type: str | None) -> Any:
    if task_type in _AUTOMATIC:
        return getattr(transformers, _AUTOMATIC[task_type]).from_config
    # PEFT has no type for masked-language models; a worker gives them this one.
    if task_type == "FEATURE_EXTRACTION" and type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING:
        return transformers.AutoModelForMaskedLM.from_config
    named: Any = getattr(transformers, next(iter(config.architectures or ()), ""), None)
    of_library = isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)
    if of_library:
        return named._from_config
    return transformers.AutoModel.from_config


def _places(model: Any, base: BaseFiles) -> tuple[dict[str, str], set[str], set[str]]:
    """Name by stored name, the stored parts of what is made of several, and the names of what is made."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    state, prefix = model.state_dict(), model.base_model_prefix
    changes: Any = get_model_conversion_mapping(model)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    places: dict[str, str] = {}
    parts: set[str] = set()
    made: set[str] = set()
    for stored in sorted(base.shapes):
        name, pattern = rename_source_key(stored, renamings, converters, prefix, state)
        if name not in state and stored in state:
            name, pattern = rename_source_key(stored, [], [], prefix, state)
        if name not in state:
            continue
        if pattern is None:
            places[stored] = name
        else:
            parts.add(stored)
            made |= _made(name, pattern, converters)
    return places, parts, made


def _made(name: str, pattern: str, converters: list[Any]) -> set[str]:
    """All that the conversion makes which has this source pattern, by the name of the first."""
    targets = next(change.target_patterns for change in converters if pattern in change.source_patterns)
    return {name.replace(targets[0], target, 1) for target in targets}


def _tied(model: Any, base: BaseFiles, stored: Mapping[str, str]) -> dict[str, str]:
    """Names that share a tensor with one that the files have; two that differ in the files share none."""
    groups: dict[str, list[str]] = {}
    for target, source in model.all_tied_weights_keys.items():
        groups.setdefault(source, [source]).append(target)
    tied = {}
    for group in groups.values():
        first = next((name for name in group if name in stored), None)
        for name in group:
            if first in (None, name):
                continue
            if name not in stored or torch.equal(base.tensor(stored[name]), base.tensor(stored[str(first)])):
                tied[name] = str(first)
    return tied


def _separable(transformers: Any, config: Any, trained: Trained) -> bool:
    """Whether `tie_word_embeddings: false` gives each of them a tensor, and changes nothing else that is computed."""
    if config.is_encoder_decoder and trained.task_type != "SEQ_CLS":
        # T5 scales the last hidden states where its embeddings are tied.
        return False
    parted = copy.deepcopy(config)
    for part in (parted, parted.get_text_config()):
        part.tie_word_embeddings = False
    return not _without_weights(transformers, parted, trained).all_tied_weights_keys


def _padding(transformers: Any, base: BaseFiles, model: Any) -> tuple[int, str] | None:
    """Id and token with which a worker pads, where the model's configuration must tell them.

    A decoder's classifier reads the last token before the padding. An encoder may count positions from the id that
    its configuration has, so what stands there is left.
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
