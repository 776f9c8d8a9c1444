"""The terms of participation: columns, data sent, frequency and duration."""

from typing import Any

import pytest

from coordinator.clients.terms import terms_of
from federated import registry
from federated.protocol import Capabilities, DeclineRequest, FailRequest, JobProgress, SubmitRequest
from tests.coordinator.clients.scene import definition

CLASSES = {"task": "sequence_classification", "labels": ["no", "yes"]}


def filled(prompt: str, response: str) -> dict[str, Any]:
    return {"task": "causal_lm", "template": {"prompt": prompt, "response": response}}


def cloze(template: str) -> dict[str, Any]:
    return CLASSES | {"cloze": {"template": template, "words": ["a", "b"]}}


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        (CLASSES, ["text", "text_pair", "label"]),
        (cloze("{title}: {text} {mask}, {title}"), ["title", "text", "label"]),
        ({"task": "causal_lm"}, ["instruction", "input", "output"]),
        (filled("{text}", "{patient_ssn}"), ["text", "patient_ssn"]),
        (filled("{{none}} {text}", "{text} {answer}"), ["text", "answer"]),
    ],
)
def test_the_columns_that_are_read_are_named(task: dict[str, Any], columns: list[str]) -> None:
    assert terms_of(definition(task=task)).columns == columns


DRAWN = "of training, for each of which up to"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rounds": 100_000}, f"at most 100000 rounds {DRAWN} 2 clients of the federation are drawn"),
        ({"rounds": 1, "clients_per_round": 1}, f"at most 1 round {DRAWN} 1 client of the federation is drawn"),
        ({"over_selection": 3}, f"at most 3 rounds {DRAWN} 5 clients of the federation are drawn"),
        (
            {"max_round_retries": 1, "max_attempts": 2},
            "a round that fails is tried again up to 1 time, and a job up to 2 times in all",
        ),
        ({"evaluation": {"every": None, "who": "all"}}, "no evaluation"),
        (
            {"evaluation": {"every": 5, "who": "all"}},
            "an evaluation on held-out examples after every 5 rounds of training and after the last, by every client",
        ),
        (
            {"evaluation": {"every": 1, "who": "cohort"}},
            "an evaluation on held-out examples after each round of training, by the clients drawn for the round",
        ),
    ],
)
def test_how_often_workers_are_asked_is_said(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in terms_of(definition(**changes)).how_often


@pytest.mark.parametrize("name", sorted(registry.algorithms()))
def test_rounds_of_preparation_are_told_of_the_algorithms_that_have_them(name: str) -> None:
    terms = terms_of(definition(algorithm=name, prepare_deadline_seconds=7.5))
    told = any("preparation" in sentence for sentence in terms.how_often)
    assert told == registry.algorithm(name).prepares
    assert ("a round of preparation lasts at most 7.5 seconds" in terms.how_long) == told


def test_how_long_things_are_kept_follows_the_definition() -> None:
    kept = {"keep_updates_rounds": 1, "keep_states_rounds": 70}
    terms = terms_of(definition(retention=kept, round_deadline_seconds=5400.0, evaluation_deadline_seconds=86400.0))
    assert terms.how_long[0].startswith("the updates of the last 1 round are kept")
    assert terms.how_long[1].startswith("the shared states of the last 70 rounds, and of every tenth round, are kept")
    assert "a round of training lasts at most 90 minutes" in terms.how_long
    assert "an evaluation lasts at most 1 day" in terms.how_long


@pytest.mark.parametrize(
    ("trainable", "words"),
    [
        ({"kind": "lora", "r": 2}, "LoRA factors (r=2) of the modules PEFT chooses for this model, and the head"),
        (
            {"kind": "lora", "target_modules": "all-linear", "modules_to_save": ["head"]},
            "all-linear, and head in full",
        ),
        ({"kind": "prefix", "num_virtual_tokens": 4}, "a prefix of 4 virtual tokens in every layer"),
        ({"kind": "full"}, "all weights"),
        ({"kind": "full", "names": ["encoder.*"]}, "the weights encoder.*"),
    ],
)
def test_what_is_trained_is_named(trainable: dict[str, Any], words: str) -> None:
    assert words in terms_of(definition(trainable=trainable)).leaves_your_site[0]


TOLD = {
    SubmitRequest: {
        "description": "the model's type", "update": "an update of", "evaluation": "of training and evaluation",
        "metrics": "numbers of the algorithm", "seconds": "seconds by phase", "download_bytes": "bytes",
        "upload_bytes": "bytes", "not_reproducible": "not repeatable", "environment": "software versions",
    },
    JobProgress: {"done": "how far", "total": "how far", "metrics": "one number each"},
    Capabilities: {
        "protocol_version": "software versions", "agent_version": "software versions", "algorithms": "algorithms",
        "datasets": "names of the data sets", "models": "base models it offers", "slots": "slots", "device": "device",
        "device_name": "device", "memory_bytes": "memory", "free_memory_bytes": "memory", "max_rank": "largest rank",
        "cpu_flags": "processor", "versions": "software versions",
    },
    FailRequest: {
        "boot_id": "of the worker", "code": "a code", "facts": "the column asked for, counts, and a reference",
        "detail": "of a failure", "transient": "of a failure",
    },
    DeclineRequest: {
        "boot_id": "of the worker", "code": "a code", "facts": "the data set's name, the column asked for, counts",
        "detail": "declines",
    },
}  # fmt: skip


@pytest.mark.parametrize("message", TOLD)
def test_no_field_of_a_workers_message_is_left_out(message: type[Any]) -> None:
    """A field that is added to the protocol must be told to who is asked to take part."""
    told = " ".join(terms_of(definition()).leaves_your_site)
    assert TOLD[message].keys() == message.model_fields.keys()
    assert [name for name, words in TOLD[message].items() if words not in told] == []
