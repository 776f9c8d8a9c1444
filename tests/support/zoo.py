"""The zoo: a tiny model of each architecture, and of each form in which a base model's folder comes.

Random weights from a fixed seed, every bias and norm away from zero and one. A folder is made when it is first asked
for.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from tests.support import zoo_forms
from tests.support.zoo_architectures import ARCHITECTURES, Kind

SEED = 3


def _formed(of: str, form: Callable[[Path], None], **changes: Any) -> Kind:
    kind = ARCHITECTURES[of]
    own = {name: getattr(kind, name) for name in Kind.__dataclass_fields__}
    return Kind(**{**own, "form": form, "of": of, **changes})


_FORMS: dict[str, Kind] = {
    "bert-gamma-beta": _formed("bert", zoo_forms.with_gamma_and_beta),
    "bert-backbone": _formed("bert", zoo_forms.backbone_alone, tasks=frozenset({"classifier"})),
    "bert-with-two-labels": _formed("bert", zoo_forms.with_another_head, tasks=frozenset({"classifier"})),
    "bert-shards": _formed("bert", zoo_forms.in_shards),
    "bert-half": _formed("bert", zoo_forms.in_float16),
    "bert-too-many-tokens": _formed("bert", zoo_forms.with_a_token_too_many, tasks=frozenset()),
    "bert-without-tokenizer": _formed("bert", zoo_forms.without_tokenizer, tasks=frozenset()),
    "gpt2-without-tokenizer": _formed("gpt2", zoo_forms.without_tokenizer, tasks=frozenset()),
    "gpt2-both-copies": _formed("gpt2", zoo_forms.with_both_copies),
    "llama-shards": _formed("llama", zoo_forms.in_shards),
    "llama-tied-shards": _formed("llama-tied", zoo_forms.in_shards),
    "llama-bfloat16": _formed("llama", zoo_forms.in_bfloat16),
    "llama-headless": _formed("llama", zoo_forms.without_head, tasks=frozenset({"classifier"})),
    "llama-too-many-tokens": _formed("llama", zoo_forms.with_a_token_too_many, tasks=frozenset()),
    "gemma3-vision-pad-3": _formed("gemma3-vision", zoo_forms.with_another_padding_token),
}

KINDS: Mapping[str, Kind] = {**ARCHITECTURES, **_FORMS}
"""The architectures, and then the forms of some of them (`of` names which)."""


def folder(name: str, root: Path) -> Path:
    """The folder of a kind below `root`, made if it is not there."""
    kind, target = KINDS[name], root / name
    if target.exists():
        return target
    library: Any = transformers_logging
    library.disable_progress_bar()
    made = root / f".{name}"
    _model(kind).save_pretrained(made)
    kind.tokens.tokenizer().save_pretrained(made)
    if kind.form is not None:
        kind.form(made)
    return made.rename(target)


def _model(kind: Kind) -> PreTrainedModel:
    make_config: Any = getattr(transformers, kind.config or kind.family + "Config")
    make_model: Any = getattr(transformers, kind.family + kind.head)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model: PreTrainedModel = make_model(make_config(**kind.fields))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
                elif parameter.std() < 0.1:
                    parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model
