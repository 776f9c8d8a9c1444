"""A real training session over a tiny model: what the halves of any algorithm need, without transformers."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from federated.contract import AnyTrainable
from federated.maths.initialization import start
from federated.trainable import Lora, ModelFacts
from tests.support.tiny_model import HIDDEN, LABELS, LAYERS, MAX_TOKENS, VOCABULARY, TinyModel, tensor_facts


@dataclass(frozen=True)
class TinyBatch:
    """`tokens`: (examples, tokens), `labels`: (examples,)."""

    indices: Sequence[int]
    tokens: Tensor
    labels: Tensor

    @property
    def examples(self) -> int:
        return len(self.indices)

    @property
    def mask(self) -> Tensor:
        return torch.ones_like(self.tokens, dtype=torch.bool)


@dataclass(frozen=True)
class TinyFederation:
    """Clients with data of their own; `open` gives a fresh session for one job of a client.

    `examples_of` by ordinal, else `examples`. A forward pass over more than `memory_examples` runs out of memory.
    """

    trainable: AnyTrainable = field(default_factory=lambda: Lora(r=2, lora_alpha=4))
    seed: int = 0
    examples: int = 12
    examples_of: Mapping[int, int] = field(default_factory=dict)
    settings: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    memory_examples: int | None = None

    def open(self, ordinal: int, seed: int) -> "TinySession":
        return TinySession(self, ordinal, seed)


class TinySession:
    """Implements `federated.session.TrainingSession`; `reports` and `facts_noted` record what a half told."""

    def __init__(self, federation: TinyFederation, ordinal: int, seed: int) -> None:
        self.seed = seed
        self.federation_seed = federation.seed
        self.used: set[int] = set()
        self.settings: Mapping[str, Any] = federation.settings.get(ordinal, {})
        self.device = torch.device("cpu")
        self.reports: list[tuple[int, int]] = []
        self.facts_noted: list[str] = []
        self.forward_examples: list[int] = []
        self._memory_examples = federation.memory_examples
        self.examples = federation.examples_of.get(ordinal, federation.examples)
        self._data = _examples(ordinal, self.examples)
        self._held_out = _examples(1000 + ordinal, 9)
        self.model: nn.Module = TinyModel(federation.trainable)
        assert isinstance(self.model, TinyModel)
        self.facts = _model_facts(self.model, federation.trainable)
        self._tensors = {tensor.name: tensor for tensor in self.facts.tensors}
        parameters = dict(self.model.named_parameters())
        self.trainables = {name: parameters[name] for name in self._tensors}
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in self.trainables)
        self._base = {name: parameters[name].detach().clone() for name in self.trainables}
        self.load({name: self.start(name) for name in self.trainables})

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, value in tensors.items():
            if value.shape != self.trainables[name].shape:
                raise ValueError(f"tensor {name!r} has shape {list(value.shape)}")
            with torch.no_grad():
                self.trainables[name].copy_(value.float() + self._origin(name))

    def resize(self, ranks: Mapping[str, int], scalings: Mapping[str, float]) -> None:
        for module, rank in ranks.items():
            if rank < 1:
                raise ValueError(f"{module}: a rank of {rank}")
            if f"{module}.lora_A.weight" not in self.trainables:
                raise KeyError(f"{module} has no factors")
            for factor, shape in (("A", (rank, HIDDEN)), ("B", (HIDDEN, rank))):
                self.trainables[f"{module}.lora_{factor}.weight"].data = torch.full(shape, torch.nan)
            setattr(self.model.get_submodule(module), "scaling", scalings[module])  # noqa: B010

    def leave_out_prompts(self, layers: Collection[int]) -> None:
        assert isinstance(self.model, TinyModel)
        self.model.without_prompts = frozenset(layers)

    def read(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        chosen = sorted(self.trainables if names is None else names)
        return {name: self.trainables[name].detach() - self._origin(name) for name in chosen}

    def start(self, name: str) -> Tensor:
        return start(self.federation_seed, self._tensors[name])

    def layers(self) -> Sequence[nn.Module]:
        assert isinstance(self.model, TinyModel)
        return list(self.model.layers)

    def embeddings(self) -> nn.Module:
        assert isinstance(self.model, TinyModel)
        return self.model.embeddings

    def train_all_except(self, names: Collection[str]) -> None:
        for name, parameter in self.trainables.items():
            parameter.requires_grad_(name not in names)

    def training(self, mode: bool) -> None:
        self.model.train(mode)

    def batches(self, order: Sequence[int], size: int) -> Iterator[TinyBatch]:
        for first in range(0, len(order), size):
            yield self._batch(order[first : first + size])

    def split(self, batch: Any, size: int) -> Iterator[TinyBatch]:
        return self.batches(batch.indices, size)

    def loss(self, batch: Any, reduction: Literal["mean", "sum", "none"] = "mean") -> Tensor:
        if self._memory_examples is not None and batch.examples > self._memory_examples:
            raise torch.OutOfMemoryError(f"{batch.examples} examples do not fit")
        self.forward_examples.append(batch.examples)
        self.used.update(batch.indices)
        return nn.functional.cross_entropy(self.model(batch.tokens), batch.labels, reduction=reduction)

    def differentiable_twice(self) -> AbstractContextManager[None]:
        return nullcontext()

    def evaluate(self) -> Mapping[str, float]:
        self.training(False)
        tokens, labels = self._held_out
        with torch.no_grad():
            logits = self.model(tokens)
        loss = float(nn.functional.cross_entropy(logits, labels))
        accuracy = float((logits.argmax(dim=1) == labels).float().mean())
        return {"loss": loss, "accuracy": accuracy, "examples": float(len(labels))}

    def progress(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        self.reports.append((done, total))

    def record_nondeterminism(self, fact: str) -> None:
        self.facts_noted.append(fact)

    def _batch(self, indices: Sequence[int]) -> TinyBatch:
        chosen = torch.tensor(list(indices))
        return TinyBatch(tuple(indices), self._data[0][chosen], self._data[1][chosen])

    def _origin(self, name: str) -> Tensor | float:
        return self._base[name] if self._tensors[name].initialisation.kind == "base" else 0.0


def _examples(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Tokens whose mean remainder is the label: something a tiny model can learn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(LABELS, (count,), generator=generator)
    tokens = torch.randint(VOCABULARY // LABELS, (count, MAX_TOKENS), generator=generator) * LABELS
    noise = torch.randint(VOCABULARY, (count, MAX_TOKENS), generator=generator)
    noisy = torch.rand(count, MAX_TOKENS, generator=generator) < 0.3
    return torch.where(noisy, noise, tokens + labels[:, None]), labels


def _model_facts(model: TinyModel, trainable: AnyTrainable) -> ModelFacts:
    return ModelFacts(
        model_type="tiny",
        task_type="SEQ_CLS",
        tensors=tensor_facts(model, trainable),
        layers=LAYERS,
        hidden=HIDDEN,
        kv_width=HIDDEN,
        target_modules=("query",) if trainable.kind == "lora" else (),
        modules_to_save=("classifier",),
        weights_digest="sha256:" + "0" * 64,
    )
