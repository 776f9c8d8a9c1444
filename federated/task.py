"""Task definition of a federation: base model, task, and templates that turn rows into text.

Users' requests and workers' jobs share these models.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from federated import templates
from federated.names import appearance
from federated.trainable import Plain

GAP = "mask"
MAX_LABELS = 1024
MAX_LABEL = 256
MAX_WORDS = 100
"""Limit of a cloze's words. A decoder reads every row once with each word."""

Task = Literal["sequence_classification", "causal_lm"]
Metric = Literal["accuracy", "matthews", "f1"]
Label = Annotated[str, Field(max_length=MAX_LABEL)]
Labels = Annotated[tuple[Label, ...], Field(max_length=MAX_LABELS, fail_fast=True)]


def _template(text: str) -> str:
    templates.parse(text)
    return text


def _distinct(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the texts unchanged. Raises ValueError for a blank one, and for two that look the same.

    The message names their positions from 0 and escapes invisible characters.
    """
    places: dict[str, int] = {}
    for place, text in enumerate(texts):
        visible = appearance(text)
        if not visible:
            raise ValueError(f"number {place}, {text!a}, is empty or blank")
        before = places.setdefault(visible, place)
        if before != place:
            pair = f"number {before}, {texts[before]!a}, and number {place}, {text!a}"
            raise ValueError(f"must differ from one another to the eye: {pair}, look the same")
    return texts


Words = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=128)], ...],
    Field(max_length=MAX_WORDS, fail_fast=True),
    AfterValidator(_distinct),
]
TemplateText = Annotated[
    str,
    Field(max_length=8192, description="`{column}` is a row's value, by a plain name; `{{` and `}}` are braces"),
    AfterValidator(_template),
]


class BaseModelReference(Plain):
    """Reference to a base model: a hub id or the name in the workers' settings, and the digest of its weights."""

    id: str = Field(min_length=1, max_length=512)
    revision: str | None = Field(default=None, max_length=128)
    weights_sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="of the weights file; several files: see docs/users.md"
    )


class TextTemplate(Plain):
    """Template that turns a row into text for a causal model. The loss is over the response only."""

    prompt: TemplateText = Field(default="{instruction}\n{input}\n", min_length=1)
    response: TemplateText = Field(default="{output}", min_length=1)


class Cloze(Plain):
    """A classification task as a cloze for the model's own language head, without a new head.

    `{column}` is replaced by a row's value. The word at `{mask}` determines the class. The loss of an encoder is over
    the whole vocabulary at the gap, and its prediction is the most likely of `words`. A decoder reads the text with
    each word. Its loss and likelihood are over the tokens from the first one at which these texts differ.
    """

    template: TemplateText = "{text} It was {mask} ."
    words: Words = Field(description="one for each label, in their order; for an encoder each a single token")

    @field_validator("template")
    @classmethod
    def _has_one_gap(cls, text: str) -> str:
        gaps = templates.parse(text).fields.count(GAP)
        if gaps != 1:
            raise ValueError(f"the cloze template must have {{{GAP}}} once, it has it {gaps} times")
        return text


class TaskDefinition(Plain):
    """The learning task: labels for a classifier, a template for a causal model, and the metrics to report."""

    task: Task
    labels: Annotated[Labels, AfterValidator(_distinct)] | None = Field(
        default=None, description="class names, which differ to the eye; the index is the class"
    )
    template: TextTemplate | None = None
    cloze: Cloze | None = Field(default=None, description="classify by a gap in the text, without a trained head")
    max_length: int = Field(default=128, ge=8, le=131072, description="tokens; longer texts are cut")
    metrics: tuple[Metric, ...] = Field(default=("accuracy",), max_length=8, fail_fast=True)

    @model_validator(mode="after")
    def _fits_the_task(self) -> "TaskDefinition":
        if self.task == "sequence_classification" and (self.labels is None or len(self.labels) < 2):
            raise ValueError("sequence_classification needs at least two labels")
        if self.task == "causal_lm" and self.labels is not None:
            raise ValueError("causal_lm takes a template, not labels")
        if self.cloze is not None and len(self.cloze.words) != len(self.labels or ()):
            counts = f"{len(self.cloze.words)} words for {len(self.labels or ())} labels"
            raise ValueError(f"a cloze needs a word for each label of a classifier, it has {counts}")
        return self


def columns_read(task: TaskDefinition) -> tuple[str, ...]:
    """The columns of a data set that a task needs, each once, in reading order.

    `text_pair` is not among them, because it is optional for a classifier.
    """
    if task.task == "causal_lm":
        template = task.template or TextTemplate()
        columns = (*templates.parse(template.prompt).columns, *templates.parse(template.response).columns)
    elif task.cloze is not None:
        columns = (*(name for name in templates.parse(task.cloze.template).columns if name != GAP), "label")
    else:
        columns = ("text", "label")
    return tuple(dict.fromkeys(columns))


def reported_metrics(task: TaskDefinition) -> tuple[str, ...]:
    """Names of the metrics that an evaluation reports: the loss, and the task's metrics, each once.

    Matthews and F1 are left out for a causal model, because its tokens have no classes.
    """
    metrics = [name for name in task.metrics if name == "accuracy" or task.task != "causal_lm"]
    return tuple(dict.fromkeys(("loss", *metrics)))
