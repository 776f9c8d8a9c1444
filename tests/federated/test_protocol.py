"""Limits of the values in protocol messages."""

import math
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError

from federated import protocol
from federated.protocol import Cloze, ProtocolResponse, TaskDefinition
from federated.task import MAX_LABELS, MAX_WORDS


def pauses() -> Iterator[Any]:
    """Every number of seconds in an answer, by which an agent may wait."""
    for name, kind in sorted(vars(protocol).items()):
        if isinstance(kind, type) and issubclass(kind, ProtocolResponse):
            for field, facts in kind.model_fields.items():
                if field.endswith("_seconds"):
                    yield pytest.param(Annotated[facts.annotation, facts], id=f"{name}.{field}")


@pytest.mark.parametrize("kind", list(pauses()))
def test_no_answer_has_an_agent_wait_for_ever_or_not_at_all(kind: Any) -> None:
    checked = TypeAdapter(kind)
    assert checked.validate_python(0.2) == 0.2
    for bad in (0.0, -1.0, math.nan, math.inf, -math.inf, 1e300):
        with pytest.raises(ValidationError):
            checked.validate_python(bad)


def labels(number: int) -> tuple[str, ...]:
    return tuple(map(str, range(number)))


def test_the_classes_of_a_task_are_bounded() -> None:
    TaskDefinition(task="sequence_classification", labels=labels(MAX_LABELS))
    Cloze(words=labels(MAX_WORDS))
    with pytest.raises(ValidationError):
        TaskDefinition(task="sequence_classification", labels=labels(MAX_LABELS + 1))
    with pytest.raises(ValidationError):
        TaskDefinition(task="sequence_classification", labels=("a", "b" * 513))
    with pytest.raises(ValidationError):
        TaskDefinition(task="sequence_classification", labels=labels(2), metrics=("f1",) * 9)
    with pytest.raises(ValidationError):
        Cloze(words=labels(MAX_WORDS + 1))
