"""Terms of participation in a federation, in plain sentences: data read, sent and kept, and for how long."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from federated import registry
from federated.protocol import TaskDefinition
from federated.task import columns_read
from federated.trainable import Full, Lora, Prefix, Trainable

UNREADABLE = "never: an earlier version wrote this definition, and this version cannot read it"
STAYS = ("texts and labels of every example", "what a client remembers between rounds")
_SPANS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


class Terms(BaseModel):
    """The terms that an organization accepts, in words."""

    columns: list[str] = Field(description="columns that are read; `text_pair` only if the data set has it")
    how_often: list[str] = Field(description="when your workers get jobs")
    how_long: list[str] = Field(description="how long the coordinator keeps data, and how long each step may take")
    leaves_your_site: list[str] = Field(description="everything that workers send to the coordinator")
    stays_at_your_site: list[str]


class _Evaluation(BaseModel):
    every: int | None
    who: str


class _Retention(BaseModel):
    keep_updates_rounds: int
    keep_states_rounds: int


class _Definition(BaseModel):
    model_config = ConfigDict(extra="ignore")

    task: TaskDefinition
    trainable: Trainable
    algorithm: str
    rounds: int
    clients_per_round: int
    over_selection: int
    max_round_retries: int
    max_attempts: int
    round_deadline_seconds: float
    prepare_deadline_seconds: float
    evaluation_deadline_seconds: float
    evaluation: _Evaluation
    retention: _Retention


def terms_of(definition: Mapping[str, Any]) -> Terms:
    """The terms of a federation with this stored definition; empty if this version cannot read it."""
    try:
        fields = _Definition.model_validate(definition)
    except ValidationError:
        return Terms(columns=[], how_often=[UNREADABLE], how_long=[], leaves_your_site=[], stays_at_your_site=[])
    return Terms(
        columns=_columns(fields.task),
        how_often=_how_often(fields),
        how_long=_how_long(fields),
        leaves_your_site=_leaves(fields),
        stays_at_your_site=list(STAYS),
    )


def _columns(task: TaskDefinition) -> list[str]:
    columns = list(columns_read(task))
    if task.task == "sequence_classification" and task.cloze is None:
        columns.insert(1, "text_pair")
    return columns


def _prepares(algorithm: str) -> bool:
    declaration = registry.algorithms().get(algorithm)
    return declaration is not None and declaration.prepares


def _how_often(definition: _Definition) -> list[str]:
    cohort = definition.clients_per_round + definition.over_selection
    preparation = ["rounds of preparation come before the first round of training; every client takes part in them"]
    return [
        "once at the start, and again when you restore a client: it describes its model and counts its examples",
        *(preparation if _prepares(definition.algorithm) else []),
        f"at most {_count(definition.rounds, 'round')} of training, for each of which up to "
        f"{_count(cohort, 'client')} of the federation {'is' if cohort == 1 else 'are'} drawn",
        f"a round that fails is tried again up to {_count(definition.max_round_retries, 'time')}, "
        f"and a job up to {_count(definition.max_attempts, 'time')} in all",
        _evaluations(definition.evaluation),
    ]


def _evaluations(evaluation: _Evaluation) -> str:
    if evaluation.every is None:
        return "no evaluation"
    each, rest = "each round of training", f"every {evaluation.every} rounds of training and after the last"
    when = each if evaluation.every == 1 else rest
    who = "every client" if evaluation.who == "all" else "the clients drawn for the round"
    return f"an evaluation on held-out examples after {when}, by {who}"


def _how_long(definition: _Definition) -> list[str]:
    updates, states = definition.retention.keep_updates_rounds, definition.retention.keep_states_rounds
    preparation = [f"a round of preparation lasts at most {_span(definition.prepare_deadline_seconds)}"]
    return [
        f"the updates of the last {_count(updates, 'round')} are kept until the federation is deleted; "
        "older ones are deleted about a day after",
        f"the shared states of the last {_count(states, 'round')}, and of every tenth round, are kept until the "
        "federation is deleted; older ones are deleted about a day after",
        "the adapter of every round is kept for good: until the federation is deleted, and longer by anyone who has "
        "downloaded it",
        *(preparation if _prepares(definition.algorithm) else []),
        f"a round of training lasts at most {_span(definition.round_deadline_seconds)}",
        f"an evaluation lasts at most {_span(definition.evaluation_deadline_seconds)}",
        "the operator's backups are not part of these periods",
    ]


def _leaves(definition: _Definition) -> list[str]:
    metrics = ", ".join(("loss", *definition.task.metrics))
    labels = ["which labels occur in the data set"] if definition.task.labels is not None else []
    return [
        f"each round it is drawn for: an update of {_tensors(definition.trainable)}, as {definition.algorithm} makes "
        "it, with its digest and the worker's signature",
        "number of examples trained on, the weight of the update, and the number of held-out examples",
        *labels,
        f"{metrics} of training and evaluation, and numbers of the algorithm: one number each; while a job runs, "
        "how far it has come",
        "the model's type, its layers and widths, names and shapes of the trained tensors, and the SHA-256 of the "
        "base model's weights",
        "the digest of what a client remembers between rounds",
        "of each job: seconds by phase, bytes, software versions, and what makes it not repeatable",
        "of the worker, with its heartbeat: device, memory, processor, software versions, algorithms, slots, largest "
        "rank, and the names of the data sets and base models it offers",
        "of a failure, or a job that the node's policy declines: a code, the data set's name, the column asked for, "
        "counts, and a reference to the node's own log",
    ]


def _tensors(trainable: Lora | Prefix | Full) -> str:
    if isinstance(trainable, Lora):
        return f"LoRA factors (r={trainable.r}) of {_targets(trainable.target_modules)}{_full_modules(trainable)}"
    if isinstance(trainable, Prefix):
        return f"a prefix of {trainable.num_virtual_tokens} virtual tokens in every layer"
    return f"the weights {', '.join(trainable.names)}" if trainable.names else "all weights"


def _targets(modules: tuple[str, ...] | str | None) -> str:
    if modules is None:
        return "the modules PEFT chooses for this model"
    return modules if isinstance(modules, str) else ", ".join(modules)


def _full_modules(trainable: Lora) -> str:
    if trainable.modules_to_save is None:
        return ", and the head of a classifier"
    return f", and {', '.join(trainable.modules_to_save)} in full" if trainable.modules_to_save else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _span(seconds: float) -> str:
    """The duration in the largest unit that divides it."""
    for size, noun in _SPANS:
        if seconds % size == 0:
            return _count(int(seconds // size), noun)
    return f"{seconds:g} seconds"
