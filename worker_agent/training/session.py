"""The implementation of `federated.session.TrainingSession`: an adapted model over one client's examples."""

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
from worker_agent.training.tokens import Examples, TokenBatch, Tokenization, load_tokenizer, tokenize
from worker_agent.training.vocabulary import check_embeddings, check_words

KEPT_DATASETS = 8
MIN_TOKENS = 8
Report = Callable[[int, int, Mapping[str, float]], None]


def ignore_progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
    """A report that nobody reads."""


@dataclass(frozen=True, slots=True)
class ClientData:
    """One client's examples."""

    train: Examples
    held_out: Examples


class Session:
    """A model with its adapter over one client's examples, for one job. `used`: examples of which a loss was taken.

    Creating one restores the model, which belongs to its latest session.
    """

    def __init__(
        self,
        adapted_model: AdaptedModel,
        data: ClientData,
        task: TaskDefinition,
        *,
        seed: int,
        federation_seed: int,
        settings: Mapping[str, Any],
        dtype: torch.dtype,
        report: Report = ignore_progress,
    ) -> None:
        self.data = data
        self.seed, self.federation_seed = seed, federation_seed
        self.settings = settings
        self.facts = adapted_model.facts
        self.model = adapted_model.model
        self.trainables = adapted_model.trainables
        self.examples = len(data.train)
        self.used: set[int] = set()
        self.notes: tuple[str, ...] = ()
        self._adapted_model, self._task, self._report = adapted_model, task, report
        self.forward = Forward(adapted_model, dtype)
        self.device = self.forward.device
        self._facts_of = {facts.name: facts for facts in (*adapted_model.facts.tensors, *adapted_model.facts.seeded)}
        adapted_model.restore(federation_seed)

    @property
    def words(self) -> int:
        """The number of words with which an evaluation reads each example."""
        choices = self.data.held_out.choices
        return 1 if choices is None else choices.words

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set trainable or seeded tensors by canonical name. Raises KeyError, ValueError, naming the tensor."""
        for name in tensors:
            self._adapted_model.set(name, tensors[name])

    def resize(self, ranks: Mapping[str, int], scalings: Mapping[str, float]) -> None:
        """Change ranks and scales of these modules' factors, until the next session of the model.

        Raises KeyError, ValueError, naming the module.
        """
        self._adapted_model.resize(ranks, scalings)

    def leave_out_prompts(self, layers: Collection[int]) -> None:
        """Remove the prompts from these layers, until the next session of the model."""
        virtual_tokens = len(self.trainables[PROMPT_EMBEDDINGS])
        for layer in layers:
            self._adapted_model.hold(without_prompts(self.layers()[layer], virtual_tokens))

    def read(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Copies (float32, CPU) of these trainable tensors, or of all. Raises KeyError."""
        return {name: self._adapted_model.get(name) for name in (self.trainables if names is None else names)}

    def values(self) -> dict[str, Tensor]:
        """Copies (float32, CPU) of all trainable and seeded tensors, with differences added to their base."""
        parameters = {**self._adapted_model.trainables, **self._adapted_model.seeded}
        return {name: value.detach().to("cpu", torch.float32, copy=True) for name, value in parameters.items()}

    def start(self, name: str) -> Tensor:
        """The seeded initial value of a tensor (float32, CPU); zeros for one that is sent as a difference."""
        return start(self.federation_seed, self._facts_of[name])

    def layers(self) -> Sequence[nn.Module]:
        """The transformer layers, lowest first."""
        lists = (module for module in self._adapted_model.base.modules() if isinstance(module, nn.ModuleList))
        return next(list(layers) for layers in lists if len(layers) == self.facts.layers)

    def embeddings(self) -> nn.Module:
        """The module of the first hidden states: an encoder's whole embedding block, a decoder's token table."""
        backbone: Any = self._adapted_model.base.base_model
        block = getattr(backbone, "embeddings", None)
        module: nn.Module = block if isinstance(block, nn.Module) else backbone.get_input_embeddings()
        return module

    def train_all_except(self, names: Collection[str]) -> None:
        """Freeze exactly these trainables; all others require a gradient. Raises KeyError."""
        self._adapted_model.require_gradients(names)

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
        """Make `loss` differentiable twice inside the block. Raises JobDeclined if the model cannot."""
        return differentiable_twice(self._adapted_model.base)

    def evaluate(self) -> dict[str, float]:
        """`loss`, the task's metrics and `examples` on the held-out split, with the current model.

        A classifier's f1 is that of class 1 for two classes, macro for more. See `evaluation` for a causal model.
        """
        was_training = self.model.training
        self.training(False)
        try:
            return evaluate(self.forward, self.data.held_out, self._task, self.progress)
        finally:
            self.training(was_training)

    def progress(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """Report the job's progress. Raises JobInterrupted if the job was canceled."""
        self._report(done, total, metrics or {})

    def record_nondeterminism(self, fact: str) -> None:
        """Record, once, a fact that breaks bit-for-bit repetition."""
        if fact not in self.notes:
            self.notes = (*self.notes, fact)


class SessionFactory:
    """Opens sessions one after the other, and caches the model and tokenized examples between jobs.

    One model is cached, by its weights, task, labels, trainable, placement and format. The examples of
    `kept_datasets` data sets are cached, by their files, tokenizer, task and length.
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
        report: Report = ignore_progress,
    ) -> Session:
        """A session for one job of a client. Raises DataError, ModelError."""
        device = choose_device(self.settings.device)
        dtype = choose_dtype(self.settings.dtype, device)
        data = self._client_data(work, dataset)
        return Session(
            self._adapted_model(work, device, dtype),
            data,
            work.task,
            seed=seed,
            federation_seed=work.federation_seed,
            settings=client_settings,
            dtype=dtype,
            report=report,
        )

    def clear(self) -> bool:
        """Drop the model, which an interrupted job left in an unknown state, and keep the examples. False if none."""
        had_one, self._model = self._model is not None, None
        return had_one

    def _adapted_model(self, work: Work, device: torch.device, dtype: torch.dtype) -> AdaptedModel:
        folder = model_folder(self.settings, work.base_model.id, work.base_model.revision)
        digest = check_weights(work.base_model, folder)
        # Trained weights must be loaded in full precision; frozen ones need not be.
        weights_dtype = torch.float32 if isinstance(work.trainable, Full) else dtype
        place = Placement(device, weights_dtype, self.settings.quantization)
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
            base = load_base(folder, work.task, place, tokenizer.pad_token_id)
            check_embeddings(base.model, tokenizer)
            model = adapt(base, work.trainable, digest)
            if self.settings.gradient_checkpointing:
                checkpoint_activations(model.base, work.trainable)
            self._model = (key, model)
        return self._model[1]

    def _tokenizer_in(self, folder: Path) -> PreTrainedTokenizerBase:
        """The tokenizer in a model's folder, read once for consecutive jobs with that model."""
        if self._tokenizer is None or self._tokenizer[0] != folder:
            self._tokenizer = folder, load_tokenizer(folder)
        return self._tokenizer[1]

    def _client_data(self, work: Work, dataset: str) -> ClientData:
        folder = model_folder(self.settings, work.base_model.id, work.base_model.revision)
        virtual_tokens = work.trainable.num_virtual_tokens if isinstance(work.trainable, Prefix) else 0
        facts, tokenizer = text_facts(folder), self._tokenizer_in(folder)
        most_tokens = tokenizer.model_max_length if facts.most_tokens is None else facts.most_tokens
        limit = min(work.task.max_length, most_tokens - virtual_tokens)
        if limit < MIN_TOKENS:
            detail = f"{virtual_tokens} virtual tokens leave {limit} of {most_tokens} positions for the text"
            raise ModelError("trainable_invalid", detail)
        source = self.settings.datasets.get(dataset)
        key = (dataset, source and fingerprint(source), str(folder), work.task.model_dump_json(), limit)
        if key not in self._data:
            split = load_split(self.settings, dataset)
            tokenization = Tokenization(
                task=work.task,
                columns=self.settings.datasets[dataset].readable,
                tokenizer=tokenizer,
                limit=limit,
                segments=facts.segments,
                decoder=not facts.fills_gaps,
            )
            data = ClientData(tokenize(split.train, tokenization), tokenize(split.held_out, tokenization))
            check_words(data.train, tokenization.tokenizer, dataset)
            while len(self._data) >= self._kept_datasets:
                self._data.pop(next(iter(self._data)))
            self._data[key] = data
        return self._data[key]


def open_session(
    work: Work, dataset: str, settings: AgentSettings, seed: int, client_settings: Mapping[str, Any]
) -> Session:
    """A session with its own model. A `SessionFactory` opens many, one after the other, and loads once.

    Raises DataError, ModelError.
    """
    return SessionFactory(settings).open(work, dataset, seed, client_settings)
