"""What a federation is about: which base model, which task, and how rows become text.

Shared by users' requests and by the work a worker is given.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from federated.trainable import Plain

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,127}$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Task = Literal["sequence_classification", "causal_lm"]
Metric = Literal["accuracy", "matthews", "f1"]


class BaseModelReference(Plain):
    """Which base model: a hub id or the name under which workers allow it, and what its weights must be."""

    id: str = Field(min_length=1, max_length=512)
    revision: str | None = Field(default=None, max_length=128)
    weights_sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="of the weights file; several files: see docs/users.md"
    )


class TextTemplate(Plain):
    """How a row becomes text for a causal model: `{column}` is replaced; the loss counts the response alone."""

    prompt: str = Field(default="{instruction}\n{input}\n", min_length=1, max_length=8192)
    response: str = Field(default="{output}", min_length=1, max_length=8192)


class TaskDefinition(Plain):
    """What is learned: labels for a classifier, a template for a causal model, and which metrics are reported."""

    task: Task
    labels: tuple[str, ...] | None = Field(default=None, description="class names; the index is the class")
    template: TextTemplate | None = None
    max_length: int = Field(default=128, ge=8, le=131072, description="tokens; longer texts are cut")
    metrics: tuple[Metric, ...] = ("accuracy",)

    @model_validator(mode="after")
    def _fits_the_task(self) -> "TaskDefinition":
        if self.task == "sequence_classification" and (self.labels is None or len(self.labels) < 2):
            raise ValueError("sequence_classification needs at least two labels")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must differ from one another")
        if self.task == "causal_lm" and self.labels is not None:
            raise ValueError("causal_lm takes a template, not labels")
        return self
