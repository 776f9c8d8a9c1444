"""Shards of an aggregation: the cut of a state, and parts that together are the whole."""

from dataclasses import replace

import pytest
import torch

from federated import registry
from federated.payloads.payload import Payload
from federated.payloads.shards import cut, part
from tests.support import rounds_by_hand as by_hand

STATE = Payload(
    {
        name: torch.zeros(2)
        for name in (
            "encoder.layer.0.query.lora_A.weight",
            "encoder.layer.0.query.lora_B.weight",
            "encoder.layer.0.query.lora_B.weight/m",
            "encoder.layer.10.query.lora_A.weight",
            "classifier.weight",
            "classifier.weight/base",
        )
    },
    {"seed": 1},
)
SHARDED = [
    pytest.param(sample, id=f"{sample.algorithm}-{number}")
    for number, sample in enumerate(by_hand.samples())
    if registry.algorithm(sample.algorithm).shard_by != "none"
]


class TestCut:
    def test_a_tensor_goes_with_what_is_stored_beside_it(self) -> None:
        shards = cut(STATE, "tensor", 1)
        assert len(shards) == 4
        held = part(STATE, ["classifier.weight"], "tensor")
        assert list(held) == ["classifier.weight", "classifier.weight/base"]
        assert held.facts == STATE.facts

    def test_a_layer_is_one_group_and_what_has_none_another(self) -> None:
        assert cut(STATE, "layer", 1) == (("",), ("encoder.layer.0",), ("encoder.layer.10",))
        assert len(part(STATE, ["encoder.layer.0"], "layer")) == 3

    def test_a_shard_is_filled_as_far_as_it_goes(self) -> None:
        assert cut(STATE, "layer", 40) == (("", "encoder.layer.0"), ("encoder.layer.10",))
        assert len(cut(STATE, "layer", 10_000)) == 1

    def test_what_does_not_shard_is_one(self) -> None:
        assert cut(STATE, "none", 1) == (("",),)


@pytest.mark.parametrize("sample", SHARDED)
def test_the_parts_of_an_aggregation_are_the_whole(sample: by_hand.Sample) -> None:
    by = registry.algorithm(sample.algorithm).shard_by
    state = by_hand.first_state(sample)
    step = by_hand.step_of(state, sample)
    updates = by_hand.updates(sample, state)
    whole = sample.server.aggregate(state, updates, step)
    parts = []
    for groups in cut(state, by, 1):
        cut_updates = [replace(update, payload=part(update.payload, groups, by)) for update in updates]
        made = sample.server.aggregate(part(state, groups, by), cut_updates, step)
        parts.append(replace(made, state=by_hand.through_bytes(made.state), metrics=dict(made.metrics)))
    joined = sample.server.join(state, parts, step)
    assert len(parts) > 1
    assert joined.state.encode() == whole.state.encode()
    assert dict(joined.metrics) == pytest.approx(dict(whole.metrics), rel=1e-12)
    assert {who: note.encode() for who, note in joined.notes.items()} == {
        who: note.encode() for who, note in whole.notes.items()
    }
