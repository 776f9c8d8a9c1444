"""Tests of FibecFed's settings: defaults, and valid ranges."""

from typing import Any

import pytest
from pydantic import ValidationError

from federated.algorithms.fibecfed.config import FibecFedConfig


def test_the_defaults_are_those_of_the_method() -> None:
    defaults = {
        "order_by": "fisher",
        "score_at": "start",
        "pacing": "linear",
        "pacing_start": 0.6,
        "pacing_share": 0.8,
        "ordered": False,
        "layer_count": "spectrum",
        "layer_share": 0.5,
        "layer_factor": 1.0,
        "layer_noise": "adversarial",
        "layer_noise_at": "input",
        "layer_noise_size": 0.01,
        "layer_noise_norm": 2.0,
        "lanczos_steps": 50,
        "local_share": 0.5,
        "fisher_momentum": 0.9,
        "fisher_epochs": 1.0,
        "head": "last",
    }
    assert {name: getattr(FibecFedConfig(), name) for name in defaults} == defaults


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("order_by", ("fisher", "loss", "length", "random", "reversed")),
        ("score_at", ("start", "after_warmup")),
        ("pacing", ("linear", "sqrt", "quadratic", "exponential", "step", "none")),
        ("layer_count", ("spectrum", "eigengap", "fixed")),
        ("layer_noise", ("adversarial", "gaussian")),
        ("layer_noise_at", ("input", "layer")),
        ("layer_noise_norm", (1.5, 2.0, 3.0, "inf")),
    ],
)
def test_every_option_is_admitted_and_no_other(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        assert getattr(FibecFedConfig.model_validate({name: value}), name) == value
    with pytest.raises(ValidationError, match=name):
        FibecFedConfig.model_validate({name: "another"})
