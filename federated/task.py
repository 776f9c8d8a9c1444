"""What a federation is about: which base model, which task, and how rows become text.

Shared by users' requests and by the work a worker is given.
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
"""Of a cloze: a decoder reads every row with each of them."""

Task = Literal["sequence_classification", "causal_lm"]
Metric = Literal["accuracy", "matthews", "f1"]
Label = Annotated[str, Field(max_length=MAX_LABEL)]
Labels = Annotated[tuple[Label, ...], Field(max_length=MAX_LABELS, fail_fast=True)]


def _template(text: str) -> str:
    templates.parse(text)
    return text


def _distinct(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The texts as they are. Raises ValueError for one that is blank, and for two that look the same.

    They are told with what cannot be seen written out, and by their places, counted from 0.
    """
    places: dict[str, int] = {}
    for place, text in enumerate(texts):
        shown = appearance(text)
        if not shown:
            raise ValueError(f"number {place}, {text!a}, is empty or blank")
        before = places.setdefault(shown, place)
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
    """Which base model: a hub id or the name under which workers allow it, and what its weights must be."""

    id: str = Field(min_length=1, max_length=512)
    revision: str | None = Field(default=None, max_length=128)
    weights_sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="of the weights file; several files: see docs/users.md"
    )


class TextTemplate(Plain):
    """How a row becomes text for a causal model: `{column}` is replaced; the loss counts the response alone."""

    prompt: TemplateText = Field(default="{instruction}\n{input}\n", min_length=1)
    response: TemplateText = Field(default="{output}", min_length=1)


class Cloze(Plain):
    """A classifier's question as a gap that the model's own language head fills. No head is trained.

    `{column}` is replaced by a row's value; the word that stands at `{mask}` tells the class. An encoder's loss is
    over the whole vocabulary at the gap, and its prediction the likeliest of `words`. A decoder reads the text with
    each word: loss and likelihood are of the tokens from the first one on at which these texts differ.
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
    """What is learned: labels for a classifier, a template for a causal model, and which metrics are reported."""

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
            found = f"{len(self.cloze.words)} words for {len(self.labels or ())} labels"
            raise ValueError(f"a cloze needs a word for each label of a classifier, it has {found}")
        return self


def columns_read(task: TaskDefinition) -> tuple[str, ...]:
    """The columns of a data set that a task needs, each once, in the order in which it reads them.

    Not `text_pair`, which a classifier takes where it is there.
    """
    if task.task == "causal_lm":
        template = task.template or TextTemplate()
        read = (*templates.parse(template.prompt).columns, *templates.parse(template.response).columns)
    elif task.cloze is not None:
        read = (*(name for name in templates.parse(task.cloze.template).columns if name != GAP), "label")
    else:
        read = ("text", "label")
    return tuple(dict.fromkeys(read))


def reported_metrics(task: TaskDefinition) -> tuple[str, ...]:
    """Names of what an evaluation tells: the loss, and of the task's metrics those that it has, each once.

    A causal model's tokens have no classes, and so neither matthews nor f1.
    """
    has = [name for name in task.metrics if name == "accuracy" or task.task != "causal_lm"]
    return tuple(dict.fromkeys(("loss", *has)))
