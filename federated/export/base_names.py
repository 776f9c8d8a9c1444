"""Names of a base model's stored tensors in the model that was trained, as far as the names tell.

Files may name tensors without the prefix that the trained model has before them (a classifier's adapter says
`bert.encoder`, BERT's own files `encoder`), or as an earlier library did. Where that does not settle every name, or
where one tensor may stand for two, `library_names` asks transformers.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from federated.export.base_files import BaseFiles, MergeError

_OLDER = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
_CAUSAL = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True, slots=True)
class Trained:
    """What an adapter or a ledger trained. `names`: tensors that it changes or holds, by their name in the model.

    `adapted`: those that have factors. `saved`: modules that were trained, or kept, as copies of their own.
    """

    task_type: str | None
    names: frozenset[str]
    adapted: frozenset[str] = frozenset()
    saved: tuple[str, ...] = ()

    def is_saved(self, name: str) -> bool:
        """Whether a tensor lies in a module that is a copy of its own; PEFT takes a name for the end of one."""
        return any(f".{module}." in f".{name}" for module in self.saved)

    @property
    def apart(self) -> frozenset[str]:
        """Tensors that stand for themselves, whatever shared a tensor with them in the base."""
        return self.adapted | {name for name in self.names if self.is_saved(name)}


@dataclass(frozen=True, slots=True)
class BaseNames:
    """`places`: the name in the trained model of each stored tensor that it has; `parts`: stored tensors of which it
    makes others (experts that it fuses), kept as they are.

    `lacking`: what it has and the files do not. `tied`: names that share the tensor of another, which has a place;
    `separable`: a configuration can part them. `architecture`, `padding` (id, token): as trained, None if not known.
    """

    places: Mapping[str, str]
    parts: frozenset[str] = frozenset()
    lacking: frozenset[str] = frozenset()
    tied: Mapping[str, str] = field(default_factory=dict)
    separable: bool = True
    architecture: str | None = None
    padding: tuple[int, str] | None = None


def fit_plainly(base: BaseFiles, trained: Trained) -> bool:
    """Whether the names of a causal model's files are those of the adapter, and no tensor can stand for two."""
    config = base.config
    architecture = next(iter(config.get("architectures") or ()), "")
    causal = trained.task_type in (None, "CAUSAL_LM") and architecture.endswith(_CAUSAL)
    rows = _vocabulary(config)
    shapes = (base.shapes.get(name) for name in trained.names)
    return causal and rows is not None and all(shape is not None and rows not in shape[:1] for shape in shapes)


def plain_names(base: BaseFiles, trained: Trained) -> BaseNames:
    """Names by prefix and older spelling. Raises MergeError where they leave a doubt."""
    prefix = _prefix(sorted(trained.adapted or trained.names), base.shapes)
    places = {stored: prefix + _newer(stored) for stored in base.shapes}
    present = set(places.values())
    lacking = frozenset(name for name in trained.names - present if trained.is_saved(name) or not trained.adapted)
    # What a classifier has beside its base is its own; a language head may be the embedding's tensor.
    classifier = trained.task_type == "SEQ_CLS"
    doubtful = [name for name in lacking if not classifier or _has_any(name.rpartition(".")[0], present)]
    doubtful += trained.names - present - lacking
    if doubtful:
        raise MergeError(f"the base has no tensor {min(doubtful)!r}; to look for it under another name, {_INSTALL}")
    rows = _vocabulary(base.config)
    shared = [name for stored, name in places.items() if name in trained.names and rows in base.shapes[stored][:1]]
    if shared and rows is not None and base.config.get("tie_word_embeddings") is not False:
        raise MergeError(f"{min(shared)!r} may share its tensor with another; to know, {_INSTALL}")
    return BaseNames(places, lacking=lacking, architecture=_architecture(base.config, trained))


_INSTALL = "transformers 5 must be installed"


def check_places(names: BaseNames, trained: Trained) -> None:
    """Raise MergeError unless every trained tensor has exactly one place."""
    present = list(names.places.values())
    if len(set(present)) < len(present):
        twice = min(name for name in set(present) if present.count(name) > 1)
        raise MergeError(f"the base has {twice!r} under two names")
    for name in sorted(trained.names):
        if name not in names.lacking and name not in names.tied and name not in set(present):
            raise MergeError(_without_place(name, trained))
    for name in sorted(trained.adapted & names.lacking):
        raise MergeError(_without_place(name, trained))
    if trained.apart & (set(names.tied) | set(names.tied.values())) and not names.separable:
        shared = min(trained.apart & (set(names.tied) | set(names.tied.values())))
        raise MergeError(f"{shared!r} shares its tensor with another in every model of this type; they cannot part")


def _without_place(name: str, trained: Trained) -> str:
    if name in trained.adapted:
        return f"the base has no weight for the adapted module {name.removesuffix('.weight')!r}"
    return f"the base has no tensor {name!r}, which was trained"


def _architecture(config: Mapping[str, Any], trained: Trained) -> str | None:
    """By the way that transformers names its classes."""
    named = next(iter(config.get("architectures") or ()), None)
    if named is None or trained.task_type != "SEQ_CLS":
        return None
    for ending in (*_CAUSAL, "ForMaskedLM", "ForPreTraining", "ForConditionalGeneration", "Model"):
        if named.endswith(ending):
            return str(named.removesuffix(ending)) + "ForSequenceClassification"
    return None


def _vocabulary(config: Mapping[str, Any]) -> int | None:
    nested = config.get("text_config")
    rows = config.get("vocab_size", nested.get("vocab_size") if isinstance(nested, Mapping) else None)
    return rows if isinstance(rows, int) else None


def _newer(stored: str) -> str:
    for older, newer in _OLDER:
        stored = stored.replace(older, newer)
    return stored


def _has_any(module: str, names: Collection[str]) -> bool:
    return any(name.startswith(module + ".") for name in names)


def _prefix(trained: Sequence[str], base: Collection[str]) -> str:
    """What the adapter's names have before those of the base: a classifier's adapter says `bert.`, BERT does not."""
    known = set(map(_newer, base))
    for name in trained:
        parts = name.split(".")
        for skipped in range(len(parts)):
            if ".".join(parts[skipped:]) in known:
                return "".join(f"{part}." for part in parts[:skipped])
    return ""
