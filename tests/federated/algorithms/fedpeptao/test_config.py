"""Tests of FedPepTAO's settings: defaults, and valid ranges."""

from typing import Any

import pytest
from pydantic import ValidationError

from federated.algorithms.fedpeptao.config import FedPepTAOConfig
from federated.trainable import Prefix


def test_the_defaults_are_those_of_the_method() -> None:
    defaults = {
        "optimizer": "adamw",
        "betas": (0.9, 0.999),
        "max_grad_norm": 1.0,
        "weight_decay": 0.1,
        "learning_rate": 0.04,
        "local_steps": None,
        "local_epochs": 2.0,
        "batch_size": 8,
        "moments": "reset",
        "score_examples": 8,
        "skip_last": False,
        "layer_count": "fixed",
        "layer_share": 0.5,
        "other_layers": "local",
        "server_lr": 0.05,
        "server_lr_decay": 0.99,
        "server_lr_floor": 1e-4,
        "server_beta": 0.9,
        "server_mode": "independent",
        "server_grad": "diff",
        "control_variates": True,
        "cv_update": "scaffold2",
    }
    assert {name: getattr(FedPepTAOConfig(), name) for name in defaults} == defaults
    prompts = Prefix()
    assert (prompts.num_virtual_tokens, prompts.dropout, prompts.init_std) == (20, 0.1, 0.02)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("moments", ("reset", "persist")),
        ("layer_count", ("fixed", "spectrum", "eigengap")),
        ("other_layers", ("local", "masked")),
        ("server_mode", ("independent", "chained")),
        ("server_grad", ("diff", "delta")),
        ("cv_update", ("scaffold2", "avg_grad")),
    ],
)
def test_every_option_is_admitted_and_no_other(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        assert getattr(FedPepTAOConfig.model_validate({name: value}), name) == value
    with pytest.raises(ValidationError, match=name):
        FedPepTAOConfig.model_validate({name: "another"})


def test_fewer_than_eight_examples_score_nothing_that_can_be_asked_for() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 8"):
        FedPepTAOConfig(score_examples=7)
