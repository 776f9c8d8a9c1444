"""Task definitions: labels that look different, and the metrics of a task."""

import pytest
from pydantic import ValidationError

from federated.names import appearance
from federated.task import Cloze, TaskDefinition, reported_metrics

NFC, NFD = "caf\u00e9", "cafe\u0301"
LOOKALIKES = {
    "normal forms": (NFC, NFD),
    "a space at the end": ("a", "a "),
    "a space at the start": ("a", "\ta"),
    "a space that does not break": ("two words", "two\u00a0words"),
    "two spaces": ("two words", "two  words"),
    "an ideographic space": ("two words", "two\u3000words"),
    "a zero-width space": ("ab", "a\u200bb"),
    "a byte order mark": ("ab", "\ufeffab"),
    "a direction": ("ab", "\u202dab\u202c"),
    "a soft hyphen": ("ab", "a\u00adb"),
    "a variation selector": ("\u2764", "\u2764\ufe0f"),
    "a hidden character within a letter": (NFC, "cafe\u200d\u0301"),
    "a control character": ("ab", "a\x00b"),
    "nothing": ("a", "a"),
}
BLANK = ["", " ", "\u00a0", "\u200b", "\ufe0f", "\t\n", "\u3164", "\u2800"]


def classifier(*labels: str) -> TaskDefinition:
    return TaskDefinition(task="sequence_classification", labels=labels)


@pytest.mark.parametrize("pair", LOOKALIKES.values(), ids=list(LOOKALIKES))
def test_labels_that_look_the_same_are_refused_and_both_named(pair: tuple[str, str]) -> None:
    with pytest.raises(ValidationError, match="look the same") as refused:
        classifier("other", *pair)
    (error,) = refused.value.errors()
    assert error["loc"] == ("labels",)
    assert f"number 1, {pair[0]!a}, and number 2, {pair[1]!a}" in error["msg"]


@pytest.mark.parametrize("label", BLANK, ids=ascii)
def test_a_label_of_which_nothing_is_seen_is_refused(label: str) -> None:
    with pytest.raises(ValidationError, match="is empty or blank"):
        classifier("other", label)


def test_labels_that_can_be_told_apart_stay_as_they_are() -> None:
    labels = (" padded ", "two\u00a0words", NFD, "a", "A", "\u0430", "1", "1.0", "\u2764\ufe0f", "ab", "a-b")
    assert classifier(*labels).labels == labels


def test_words_of_a_cloze_that_look_the_same_are_refused_and_both_named() -> None:
    with pytest.raises(ValidationError, match=r"'caf\\xe9', and number 1, 'cafe\\u0301', look the same"):
        Cloze(words=(NFC, NFD))
    with pytest.raises(ValidationError, match="is empty or blank"):
        Cloze(words=("a", " "))


@pytest.mark.parametrize("pair", LOOKALIKES.values(), ids=list(LOOKALIKES))
def test_what_looks_the_same_has_one_appearance(pair: tuple[str, str]) -> None:
    assert appearance(pair[0]) == appearance(pair[1]) == appearance(appearance(pair[1]))


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ({"task": "sequence_classification", "labels": ("a", "b"), "metrics": ("f1", "f1")}, ("loss", "f1")),
        ({"task": "sequence_classification", "labels": ("a", "b"), "metrics": ()}, ("loss",)),
        ({"task": "causal_lm", "metrics": ("accuracy", "matthews", "f1")}, ("loss", "accuracy")),
    ],
)
def test_a_task_says_what_its_evaluations_tell(task: dict[str, object], names: tuple[str, ...]) -> None:
    assert reported_metrics(TaskDefinition.model_validate(task)) == names
