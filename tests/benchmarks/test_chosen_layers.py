"""The benchmark of chosen layers: bytes counted from the update schema, and timed epochs."""

import pytest

from benchmarks.chosen_layers import lower_half, seconds_of_epochs, update_bytes
from federated.trainable import Initialization, Lora, ModelFacts, TensorFacts
from tests.support.tiny_session import TinyFederation


def facts() -> ModelFacts:
    def tensor(name: str, shape: tuple[int, ...]) -> TensorFacts:
        return TensorFacts(name=name, shape=shape, dtype="F32", initialisation=Initialization(kind="zeros"))

    factors = [
        tensor(f"encoder.layer.{layer}.query.lora_{factor}.weight", shape)
        for layer in range(4)
        for factor, shape in (("A", (2, 8)), ("B", (8, 2)))
    ]
    tiny = TinyFederation(trainable=Lora(r=2)).open(0, 0).facts
    return tiny.model_copy(update={"tensors": (tensor("classifier.weight", (3, 8)), *factors), "layers": 4})


@pytest.mark.parametrize(("count", "factors"), [(1, 128), (2, 256), (4, 512)])
def test_the_factors_of_the_chosen_layers_and_the_whole_head_are_counted(count: int, factors: int) -> None:
    config = {"layer_count": "fixed", "layer_share": count / 4}
    assert update_bytes("fibecfed", facts(), config) == {"factors": factors, "head": 96}


def test_plain_averaging_sends_all() -> None:
    assert update_bytes("fedavg", facts(), {}) == {"factors": 512, "head": 96}


def test_the_lower_half_is_frozen_by_name() -> None:
    assert lower_half(facts()) == [one.name for one in facts().tensors[1:5]]


def test_every_choice_is_timed() -> None:
    session = TinyFederation(trainable=Lora(r=2)).open(0, 0)
    assert all(seconds > 0 for seconds in seconds_of_epochs(session, [["layers.0.query.lora_A.weight"], []], turns=1))
