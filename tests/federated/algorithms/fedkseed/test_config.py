"""Tests of FedKSeed's settings, and of the reasons for refused ones."""

import pytest
from pydantic import ValidationError

from federated.contract import RoundFacts
from federated.registry import algorithm, check_trainable, make_config
from federated.trainable import Full, Lora


def rates(rounds: int, **settings: object) -> list[float]:
    config = make_config("fedkseed", settings)
    steps = [RoundFacts(number, "train", rounds, 3) for number in range(1, rounds + 1)]
    return [config.learning_rate_of(1000, step) for step in steps]  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [2, 64, 100, 4095, 65_535])
def test_a_number_of_directions_that_hadamard_cannot_have_is_refused(count: int) -> None:
    with pytest.raises(ValidationError, match=f"must be a power of two from 128 to 65536 for hadamard, not {count}"):
        make_config("fedkseed", {"candidates": count})


def test_other_directions_may_be_any_number() -> None:
    assert make_config("fedkseed", {"candidates": 100, "directions": "gaussian"})


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_weight_decay_is_refused_with_the_reason(decay: float) -> None:
    with pytest.raises(ValidationError, match="weight_decay is not possible: it does not commute"):
        make_config("fedkseed", {"weight_decay": decay})


def test_factors_alone_need_lora() -> None:
    config = make_config("fedkseed", {"perturb": "lora"})
    check_trainable("fedkseed", config, Lora())
    with pytest.raises(ValueError, match="perturb 'lora' needs a LoRA trainable, not 'full'"):
        check_trainable("fedkseed", config, Full())


def test_trained_biases_of_lora_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bias 'all' starts from the base model.*kind 'full'"):
        check_trainable("fedkseed", make_config("fedkseed", {}), Lora(bias="all"))


def test_the_learning_rate_is_by_default_64_over_the_number_of_perturbed_elements() -> None:
    assert rates(2) == [0.064, 0.064]
    assert rates(2, learning_rate=0.5) == [0.5, 0.5]


def test_schedules_go_from_the_whole_rate_to_the_final_fraction() -> None:
    settings = {"learning_rate": 1.0, "final_fraction": 0.2}
    assert rates(3, schedule="linear", **settings) == pytest.approx([1.0, 0.6, 0.2])
    assert rates(3, schedule="cosine", **settings) == pytest.approx([1.0, 0.6, 0.2])
    assert rates(5, schedule="cosine", **settings)[1] == pytest.approx(0.2 + 0.8 * (1 + 0.5**0.5) / 2)
    assert rates(1, schedule="linear", **settings) == [1.0]


def test_the_example_is_a_config_for_its_trainable() -> None:
    entry = algorithm("fedkseed")
    check_trainable("fedkseed", make_config("fedkseed", entry.example), Full.model_validate(entry.example_trainable))
