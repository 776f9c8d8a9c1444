"""Rehearsal of this node's models over its data sets: one step of each pair, without a federation.

The task is inferred from the data set's columns. LoRA is tried where PEFT knows the model's modules. Otherwise there
is a forward pass only.
"""

from federated.contract import AnyTrainable
from federated.protocol import BaseModelReference, TaskDefinition, Work
from federated.task import MAX_LABELS
from federated.trainable import Full, Lora
from worker_agent.settings import AgentSettings
from worker_agent.training.job_errors import ModelError
from worker_agent.training.session import SessionFactory
from worker_agent.training.summary import describe_dataset
from worker_agent.training.trial import try_model

MAX_LENGTH = 512


def rehearse(settings: AgentSettings, model_id: str, dataset: str) -> str:
    """Run one training step of a model over a data set and return its description. Raises JobRefused."""
    task, sessions = _task(settings, dataset), SessionFactory(settings)
    if task is None:
        return "not tried: the columns suit no standard task"
    try:
        return _step(sessions, model_id, dataset, task, Lora())
    except ModelError as error:
        if error.code != "trainable_invalid":
            raise
    return _step(sessions, model_id, dataset, task, Full())


def _step(
    sessions: SessionFactory, model_id: str, dataset: str, task: TaskDefinition, trainable: AnyTrainable
) -> str:
    work = Work(
        task=task,
        base_model=BaseModelReference(id=model_id),
        trainable=trainable,
        algorithm="fedavg",
        algorithm_revision=1,
        config={},
        federation_seed=0,
        rounds=1,
    )
    session = sessions.open(work, dataset, 0, {})
    gradients = not isinstance(trainable, Full)
    try_model(session, trainable, gradients=gradients)
    kind = "a classifier" if task.labels else "a language model"
    return (
        f"{kind} can be trained ({trainable.kind})" if gradients else f"{kind} reads; name target_modules to train it"
    )


def _task(settings: AgentSettings, dataset: str) -> TaskDefinition | None:
    """The standard task that the data set's columns suit, or None. Raises DataError."""
    summary = describe_dataset(settings, dataset)
    readable = settings.datasets[dataset].readable
    there = {name for name, column in readable.items() if column in summary.columns}
    labels = tuple(sorted(summary.label_counts))
    if {"text", "label"} <= there and 2 <= len(labels) <= MAX_LABELS:
        return TaskDefinition(task="sequence_classification", labels=labels, max_length=MAX_LENGTH)
    if {"instruction", "output"} <= there:
        return TaskDefinition(task="causal_lm", max_length=MAX_LENGTH)
    return None
