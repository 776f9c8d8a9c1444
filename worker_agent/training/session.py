"""The one implementation of `federated.session.TrainingSession`: an adapted model over one client's examples."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from federated.maths.initialization import start
from federated.protocol import TaskDefinition, Work
from federated.session import Batch
from federated.trainable import PROMPT_EMBEDDINGS, Full, Prefix
from worker_agent.settings import AgentSettings
from worker_agent.training.adapters import AdaptedModel, adapt
from worker_agent.training.attention import differentiable_twice
from worker_agent.training.data import fingerprint, load_split
from worker_agent.training.device import choose_device, choose_dtype
from worker_agent.training.evaluation import evaluate
from worker_agent.training.forward import Forward, losses
from worker_agent.training.job_errors import ModelError
from worker_agent.training.model import (
    Placement,
    check_weights,
    checkpoint_activations,
    load_base,
    model_folder,
    text_facts,
)
from worker_agent.training.prompts import without_prompts
from worker_agent.training.tokens import Examples, TokenBatch, Tokenisation, load_tokenizer, tokenise
from worker_agent.training.vocabulary import check_embeddings, check_words

KEPT_DATASETS = 8
FEWEST_TOKENS = 8
Report = Callable[[int, int, Mapping[str, float]], None]


def unreported(done: int, total: int, metrics: Mapping[str, float]) -> None:
    """Where nobody waits for progress."""


@dataclass(frozen=True, slots=True)
class ClientData:
    """One client's examples."""

    train: Examples
    held_out: Examples


class Session:
    """A model with its adapter over the examples of one client, for one job. `used`: those that a loss was taken of.

    Making one restores the model: a model belongs to the session that was made of it last.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        data: ClientData,
        task: TaskDefinition,
        *,
        seed: int,
        federation_seed: int,
        settings: Mapping[str, Any],
        dtype: torch.dtype,
        report: Report = unreported,
    ) -> None:
        self.data = data
        self.seed, self.federation_seed = seed, federation_seed
        self.settings = settings
        self.facts = adapted.facts
        self.model = adapted.model
        self.trainables = adapted.trainables
        self.examples = len(data.train)
        self.used: set[int] = set()
        self.notes: tuple[str, ...] = ()
        self._adapted, self._task, self._report = adapted, task, report
        self.forward = Forward(adapted, dtype)
        self.device = self.forward.device
        self._facts_of = {facts.name: facts for facts in (*adapted.facts.tensors, *adapted.facts.seeded)}
        adapted.restore(federation_seed)

    @property
    def words(self) -> int:
        """With how many words an evaluation reads each example."""
        choices = self.data.held_out.choices
        return 1 if choices is None else choices.words

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set trainable or seeded tensors by canonical name. Raises KeyError, ValueError, naming the tensor."""
        for name in tensors:
            self._adapted.set(name, tensors[name])

    def resize(self, ranks: Mapping[str, int], scalings: Mapping[str, float]) -> None:
        """Other ranks and scales for the factors of these modules, until the next session is made of the model.

        Raises KeyError, ValueError, naming the module.
        """
        self._adapted.resize(ranks, scalings)

    def leave_out_prompts(self, layers: Collection[int]) -> None:
        """Take the prompts out of these layers, until the next session is made of the model."""
        virtual_tokens = len(self.trainables[PROMPT_EMBEDDINGS])
        for layer in layers:
            self._adapted.hold(without_prompts(self.layers()[layer], virtual_tokens))

    def read(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Copies (float32, CPU) of these trainable tensors, or of all. Raises KeyError."""
        return {name: self._adapted.get(name) for name in (self.trainables if names is None else names)}

    def values(self) -> dict[str, Tensor]:
        """Copies (float32, CPU) of all trainable and seeded tensors as they are, differences added to their base."""
        kept = {**self._adapted.trainables, **self._adapted.seeded}
        return {name: value.detach().to("cpu", torch.float32, copy=True) for name, value in kept.items()}

    def start(self, name: str) -> Tensor:
        """The seeded start of a tensor (float32, CPU); zeros for one that travels as a difference."""
        return start(self.federation_seed, self._facts_of[name])

    def layers(self) -> Sequence[nn.Module]:
        """The transformer layers, lowest first."""
        lists = (module for module in self._adapted.base.modules() if isinstance(module, nn.ModuleList))
        return next(list(layers) for layers in lists if len(layers) == self.facts.layers)

    def embeddings(self) -> nn.Module:
        """What makes the first hidden states: an encoder's whole embedding block, a decoder's token table."""
        backbone: Any = self._adapted.base.base_model
        block = getattr(backbone, "embeddings", None)
        module: nn.Module = block if isinstance(block, nn.Module) else backbone.get_input_embeddings()
        return module

    def train_all_except(self, names: Collection[str]) -> None:
        """Take these trainables out of the gradient; all others require it. Raises KeyError."""
        self._adapted.require_gradients(names)

    def training(self, mode: bool) -> None:
        """Switch the model between training (dropout) and evaluation."""
        self.model.train(mode)

    def batches(self, order: Sequence[int], size: int) -> Iterator[TokenBatch]:
        """The training examples `order` names, `size` at a time."""
        for first in range(0, len(order), size):
            yield self.data.train.batch(order[first : first + size], self.device)

    def split(self, batch: Batch, size: int) -> Iterator[TokenBatch]:
        """The same examples in pieces of at most `size`, each padded to its own longest."""
        return self.batches(batch.indices, size)

    def loss(self, batch: Batch, reduction: Literal["mean", "sum", "none"] = "mean") -> Tensor:
        """Loss over the batch's examples (float32); a causal example counts the mean over its response tokens."""
        self.used.update(batch.indices)
        tokens = batch if isinstance(batch, TokenBatch) else self.data.train.batch(batch.indices, self.device)
        each = losses(*self.forward(tokens))
        return each if reduction == "none" else each.mean() if reduction == "mean" else each.sum()

    def differentiable_twice(self) -> AbstractContextManager[None]:
        """While the block runs, the gradient of `loss` has a gradient. Raises JobDeclined where it cannot."""
        return differentiable_twice(self._adapted.base)

    def evaluate(self) -> dict[str, float]:
        """`loss`, the task's metrics and `examples` on the held-out split, with the model as it is.

        A classifier's f1 is that of class 1 of two, and macro over more; see `evaluation` for a causal model.
        """
        was_training = self.model.training
        self.training(False)
        try:
            return evaluate(self.forward, self.data.held_out, self._task, self.progress)
        finally:
            self.training(was_training)

    def progress(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """Say how far the job is. Raises JobInterrupted if it was taken back."""
        self._report(done, total, metrics or {})

    def record_nondeterminism(self, fact: str) -> None:
        """Record, once, what breaks bit-for-bit repetition."""
        if fact not in self.notes:
            self.notes = (*self.notes, fact)


class Workbench:
    """Keeps the model loaded and the examples tokenised between jobs; its sessions are used one after another.

    The model is known by its weights, task, labels, trainable, place and format; another one takes its place. The
    examples are known by their files, tokenizer, task and length; of `kept_datasets` data sets they are kept.
    """

    def __init__(self, settings: AgentSettings, kept_datasets: int = KEPT_DATASETS) -> None:
        self.settings = settings
        self._kept_datasets = kept_datasets
        self._model: tuple[object, AdaptedModel] | None = None
        self._data: dict[object, ClientData] = {}
        self._tokenizer: tuple[Path, PreTrainedTokenizerBase] | None = None

    def open(
        self,
        work: Work,
        dataset: str,
        seed: int,
        client_settings: Mapping[str, Any],
        report: Report = unreported,
    ) -> Session:
        """A session for one job of a client. Raises DataError, ModelError."""
        device = choose_device(self.settings.device)
        dtype = choose_dtype(self.settings.dtype, device)
        data = self._client_data(work, dataset)
        return Session(
            self._adapted(work, device, dtype),
            data,
            work.task,
            seed=seed,
            federation_seed=work.federation_seed,
            settings=client_settings,
            dtype=dtype,
            report=report,
        )

    def clear(self) -> bool:
        """Forget the model, in whatever state a job that broke off left it; the examples stay. False for none."""
        had_one, self._model = self._model is not None, None
        return had_one

    def _adapted(self, work: Work, device: torch.device, dtype: torch.dtype) -> AdaptedModel:
        folder = model_folder(self.settings, work.base_model.id, work.base_model.revision)
        digest = check_weights(work.base_model, folder)
        # What is trained must be loaded in full precision; what stays as it is need not be.
        stored = torch.float32 if isinstance(work.trainable, Full) else dtype
        place = Placement(device, stored, self.settings.quantization)
        key = (
            digest,
            str(folder),
            work.task.task,
            work.task.labels,
            work.task.cloze is None,
            work.trainable.model_dump_json(),
            place,
        )
        if self._model is None or self._model[0] != key:
            self._model = None
            tokenizer = self._tokenizer_in(folder)
            loaded = load_base(folder, work.task, place, tokenizer.pad_token_id)
            check_embeddings(loaded.model, tokenizer)
            adapted = adapt(loaded, work.trainable, digest)
            if self.settings.gradient_checkpointing:
                checkpoint_activations(adapted.base, work.trainable)
            self._model = (key, adapted)
        return self._model[1]

    def _tokenizer_in(self, folder: Path) -> PreTrainedTokenizerBase:
        """The tokenizer in a model's folder, read once while jobs are for that model."""
        if self._tokenizer is None or self._tokenizer[0] != folder:
            self._tokenizer = folder, load_tokenizer(folder)
        return self._tokenizer[1]

    def _client_data(self, work: Work, dataset: str) -> ClientData:
        folder = model_folder(self.settings, work.base_model.id, work.base_model.revision)
        virtual_tokens = work.trainable.num_virtual_tokens if isinstance(work.trainable, Prefix) else 0
        facts, tokenizer = text_facts(folder), self._tokenizer_in(folder)
        most_tokens = tokenizer.model_max_length if facts.most_tokens is None else facts.most_tokens
        limit = min(work.task.max_length, most_tokens - virtual_tokens)
        if limit < FEWEST_TOKENS:
            detail = f"{virtual_tokens} virtual tokens leave {limit} of {most_tokens} positions for the text"
            raise ModelError("trainable_invalid", detail)
        chosen = self.settings.datasets.get(dataset)
        key = (dataset, chosen and fingerprint(chosen), str(folder), work.task.model_dump_json(), limit)
        if key not in self._data:
            split = load_split(self.settings, dataset)
            how = Tokenisation(
                task=work.task,
                columns=self.settings.datasets[dataset].readable,
                tokenizer=tokenizer,
                limit=limit,
                segments=facts.segments,
                decoder=not facts.fills_gaps,
            )
            data = ClientData(tokenise(split.train, how), tokenise(split.held_out, how))
            check_words(data.train, how.tokenizer, dataset)
            while len(self._data) >= self._kept_datasets:
                self._data.pop(next(iter(self._data)))
            self._data[key] = data
        return self._data[key]


def open_session(
    work: Work, dataset: str, settings: AgentSettings, seed: int, client_settings: Mapping[str, Any]
) -> Session:
    """A session with a model of its own; a `Workbench` opens many, one after another, and loads once.

    Raises DataError, ModelError.
    """
    return Workbench(settings).open(work, dataset, seed, client_settings)
