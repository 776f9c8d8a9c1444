"""Of which examples an update is made, where others were looked at in the same job."""

from typing import Any

import pytest

from federated.registry import make_config
from federated.trainable import Lora
from tests.support import rounds_by_hand as rounds
from tests.support.rounds_by_hand import Sample


@pytest.mark.parametrize(
    "config",
    [
        {"pacing_start": 0.01, "batch_size": 1},
        {"pacing_start": 0.01, "batch_size": 1, "score_at": "after_warmup"},
        {"pacing_start": 0.5, "batch_size": 2, "order_by": "loss"},
        {"pacing": "none"},
    ],
)
def test_examples_that_were_scored_and_not_trained_on_are_not_used(config: dict[str, Any]) -> None:
    """A client that has forgotten its scores, or was told to, makes them in the job that trains."""
    usual = {"batch_size": 4, "local_epochs": 2.0, "layer_count": "fixed", "preparation_steps": 2}
    sample = Sample("fibecfed", make_config("fibecfed", usual | config), Lora(r=2, lora_alpha=4))
    prepared = rounds.first_state(sample)
    state = sample.server.aggregate(
        prepared, rounds.updates(sample, prepared), rounds.step_of(prepared, sample)
    ).state
    session = sample.federation.open(1, 100)
    result = sample.client.run(rounds.instructions(sample, rounds.through_bytes(state))[1], session, None)
    assert not result.is_measurement
    assert len(session.used) == round(result.metrics["admitted_share"] * session.examples)
    assert len(session.used) < session.examples or config == {"pacing": "none"}
    effort = sample.config.most_effort("train", session.examples)
    assert effort is not None
    assert effort.examples is not None
    assert effort.examples <= len(session.used)
