"""The methods compared by the benchmark of Fisher scores: the same work over the same examples."""

import torch

from benchmarks.fisher_scores import SHAPES, epoch, measure, one_at_a_time, texts
from federated.algorithms.fibecfed.fisher import fisher_traces
from federated.algorithms.fibecfed.layers import layer_tensors
from federated.trainable import Lora
from tests.support.tiny_session import TinyFederation, TinySession


def session() -> TinySession:
    tiny = TinyFederation(trainable=Lora(r=2), examples=40).open(1, 5)
    tiny.load({name: torch.full((8, 2), 0.1) for name in tiny.trainables if ".lora_B." in name})
    return tiny


def test_both_ways_of_scoring_give_the_same() -> None:
    tiny = session()
    scores = fisher_traces(tiny, layer_tensors(tiny.facts), range(40), 32)
    torch.testing.assert_close(scores, one_at_a_time(tiny, range(40)), rtol=1e-5, atol=0)


def test_an_epoch_sees_every_example_once_in_the_order_given() -> None:
    tiny = session()
    epoch(tiny, range(40))
    assert tiny.forward_examples == [32, 8]


def test_what_is_measured_is_the_median_of_the_turns_and_the_largest_difference() -> None:
    result = measure(session(), turns=1)
    assert (result["examples"], result["tokens"]) == (40, 240)
    assert result["difference"] <= 1e-5
    assert result["ratio_to_epoch"] == result["hooks_seconds"] / result["epoch_seconds"] > 0


def test_the_shapes_differ_in_length_and_are_the_same_every_time() -> None:
    means = [sum(len(text.split()) for text in texts(shape, 200)) / 200 for shape in SHAPES]
    assert means == sorted(means)
    assert all(
        0.8 * SHAPES[shape][0] < mean < 1.2 * SHAPES[shape][0] for shape, mean in zip(SHAPES, means, strict=True)
    )
    assert texts("rte", 5) == texts("rte", 5)
