"""Effort limits: no job of any algorithm exceeds the steps and passes that its configuration declares."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from federated import registry, schedule, simulation
from federated.contract import AlgorithmConfig, GradientConfig
from federated.registry import make_config
from federated.simulation import SimulatedFederation
from tests.support import rounds_by_hand as rounds
from tests.support.rounds_by_hand import Sample
from tests.support.tiny_session import TinySession


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many steps all optimizers took inside the block."""
    steps = [0]

    def count(*_: Any) -> None:
        steps[0] += 1

    handle = register_optimizer_step_post_hook(count)
    try:
        yield steps
    finally:
        handle.remove()


class Counting:
    """Opens sessions, and keeps what was done in each."""

    def __init__(self, sample: Sample, steps: list[int]) -> None:
        self._federation, self._steps = sample.federation, steps
        self.jobs: list[tuple[int, TinySession, int]] = []

    def open(self, ordinal: int, seed: int) -> TinySession:
        session = self._federation.open(ordinal, seed)
        self.jobs.append((ordinal, session, self._steps[0]))
        return session

    def done(self) -> Iterator[tuple[int, TinySession, int]]:
        """Ordinal, session, and optimizer steps of each job."""
        ends = [began for _, _, began in self.jobs[1:]] + [self._steps[0]]
        for (ordinal, session, began), end in zip(self.jobs, ends, strict=True):
            yield ordinal, session, end - began


def kind_of(session: TinySession, ordinal: int, seed: int) -> str | None:
    kinds = itertools.product(("prepare", "train"), range(1, 20))
    return next(
        (
            kind
            for kind, number in kinds
            if schedule.job_seed(seed, kind, number, ordinal, "train") == session.seed  # type: ignore[arg-type]
        ),
        None,
    )


@pytest.mark.parametrize("sample", rounds.samples(), ids=lambda sample: f"{sample.algorithm}-{sample.trainable.kind}")
def test_no_job_does_more_than_was_said(sample: Sample) -> None:
    federation = SimulatedFederation(sample.algorithm, sample.config, sample.trainable, clients=3, rounds=2)
    with counted() as steps:
        counting = Counting(sample, steps)
        simulation.run(federation, counting.open)
        jobs = [(kind_of(session, ordinal, 0), session, taken) for ordinal, session, taken in counting.done()]
    assert {kind for kind, _, _ in jobs} >= {"train"}
    for kind, session, taken in jobs:
        if kind is not None:
            assert_within(sample.config, kind, session, taken)


def assert_within(config: AlgorithmConfig, kind: Any, session: TinySession, taken: int) -> None:
    most = config.most_effort(kind, session.examples)
    assert most is not None
    assert taken <= most.steps
    passes_of_a_step = 1 if isinstance(config, GradientConfig) else 2
    in_steps = most.steps * config.batch_size * passes_of_a_step  # type: ignore[attr-defined]
    assert sum(session.forward_examples) <= in_steps + most.passes * session.examples


@pytest.mark.parametrize("sample", rounds.samples(), ids=lambda sample: f"{sample.algorithm}-{sample.trainable.kind}")
def test_what_is_not_counted_as_made_of_examples_describes_layers(sample: Sample) -> None:
    state = rounds.first_state(sample)
    session = sample.federation.open(0, 100)
    result = sample.client.run(rounds.instructions(sample, state)[0], session, None)
    elements = sum(result.update[name].numel() for name in result.update)
    most = 2 * session.facts.layers
    assert result.is_measurement == (state.facts.get("phase") == "prepare" and elements <= most)


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({}, 40),
        ({"learning_rate": 1.0, "weight_decay": 1.0}, 4),
        ({"learning_rate": 1.0, "weight_decay": 0.9}, 8),
        ({"learning_rate": 100.0, "weight_decay": 1.0}, 8),
        ({"learning_rate": 2.0, "weight_decay": 1.0}, 40),
        ({"learning_rate": 0.04, "weight_decay": 0.1}, 40),
        ({"local_steps": 2}, 8),
    ],
)
@pytest.mark.parametrize("name", ["fedavg", "flexlora", "fedpeptao", "fibecfed"])
def test_an_update_is_of_the_examples_that_it_does_not_forget(name: str, config: dict[str, Any], most: int) -> None:
    usual = {"local_steps": 20, "batch_size": 4} | ({"pacing": "none"} if name == "fibecfed" else {})
    effort = make_config(name, usual | {"learning_rate": 0.01, "weight_decay": 0.0} | config).most_effort("train", 40)
    assert effort is not None
    assert effort.examples == most


@pytest.mark.parametrize("decay", [1.0, 0.9])
@pytest.mark.parametrize("rate", [1.0, 1.1])
def test_weight_decay_makes_a_job_forget_its_first_steps(decay: float, rate: float) -> None:
    """What the count above is for: other examples in the first half of a job make no difference to speak of."""
    weights = []
    for gradient in (1.0, -1.0):
        weight = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=rate, weight_decay=decay)
        for step in range(20):
            weight.grad = torch.full((1,), gradient if step < 10 else 1.0)
            optimizer.step()
        weights.append(weight.item())
    assert weights[0] == pytest.approx(weights[1], rel=1e-8)


@pytest.mark.parametrize("name", sorted(registry.algorithms()))
class TestWhatIsSaid:
    def test_grows_with_what_is_asked(self, name: str) -> None:
        for field, few, many in (("local_steps", 10, 1000), ("batch_size", 4, 4096)):
            less, more = (make_config(name, {field: value}).most_effort("train", 40) for value in (few, many))
            assert less is not None
            assert more is not None
            assert (more.steps, more.passes) != (less.steps, less.passes)

    def test_a_batch_larger_than_the_data_counts_as_the_passes_it_is(self, name: str) -> None:
        effort = make_config(name, {"local_steps": 20, "batch_size": 4096}).most_effort("train", 40)
        assert effort is not None
        assert effort.passes > 20 * 100


def test_what_a_preparation_may_be_made_to_do_is_counted() -> None:
    greedy = {"local_steps": 20, "preparation_steps": 10_000, "fisher_epochs": 100, "lanczos_steps": 500}
    config = make_config("fibecfed", greedy)
    prepare, train = config.most_effort("prepare", 40), config.most_effort("train", 40)
    assert prepare is not None
    assert train is not None
    assert (prepare.steps, prepare.passes > 200) == (10_000, True)
    assert train.steps == 20 + 100 * 40 // 16


def test_an_algorithm_that_says_nothing_is_not_bounded() -> None:
    assert AlgorithmConfig().most_effort("train", 40) is None
