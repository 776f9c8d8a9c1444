"""The gradient loop against loops written out by hand."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from federated.algorithm_kit.local_training import Hooks, TrainingDiverged, shuffled, train
from federated.contract import GradientConfig
from federated.session import JobInterrupted
from tests.support.tiny_session import TinyFederation, TinySession

EXAMPLES = 10
KNOWN_ORDER = [4, 0, 5, 6, 7, 2, 3, 1]


def session(**changes: Any) -> TinySession:
    return TinyFederation(examples=EXAMPLES, **changes).open(1, 77)


def config(**changes: Any) -> GradientConfig:
    return GradientConfig(**{"local_epochs": 2, "batch_size": 4, "learning_rate": 0.05, **changes})


def trained(opened: TinySession, settings: GradientConfig, hooks: Hooks | None = None) -> dict[str, Tensor]:
    train(opened, settings, hooks)
    return opened.read()


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class TestSteps:
    def test_it_does_what_the_written_out_loop_does(self) -> None:
        by_hand = session()
        parameters = list(by_hand.trainables.values())
        optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1, betas=(0.8, 0.9))
        order = shuffled(77, 0, EXAMPLES) + shuffled(77, 1, EXAMPLES)
        losses = []
        by_hand.training(True)
        for batch in by_hand.batches(order, 4):
            loss = by_hand.loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 0.5)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        opened = session()
        settings = config(weight_decay=0.1, betas=(0.8, 0.9), max_grad_norm=0.5)
        metrics = train(opened, settings)
        assert same(opened.read(), by_hand.read())
        assert metrics.pop("seconds") > 0
        assert metrics == {"loss": pytest.approx(sum(losses) / 5), "steps": 5.0, "examples_seen": 20.0}

    def test_sgd_has_its_momentum(self) -> None:
        by_hand, opened = session(), session()
        parameters = list(by_hand.trainables.values())
        optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
        for batch in by_hand.batches(shuffled(77, 0, EXAMPLES), 5):
            by_hand.loss(batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
        settings = config(local_epochs=1, batch_size=5, optimizer="sgd", momentum=0.9, max_grad_norm=None)
        assert same(trained(opened, settings), by_hand.read())

    @pytest.mark.parametrize(
        ("settings", "sizes"),
        [
            ({"local_epochs": 1}, [4, 4, 2]),
            ({"local_epochs": 2}, [4, 4, 4, 4, 4]),
            ({"local_epochs": 0.5}, [4, 1]),
            ({"local_epochs": 0.01}, [1]),
            ({"local_epochs": 0.3}, [3]),
            ({"local_steps": 1}, [4]),
            ({"local_steps": 6}, [4, 4, 4, 4, 4, 4]),
            ({"local_steps": 2, "batch_size": 16}, [16, 16]),
            ({"local_epochs": 1, "batch_size": 16}, [10]),
        ],
    )
    def test_steps_or_epochs_decide_how_many_batches_of_which_size(
        self, settings: dict[str, Any], sizes: list[int]
    ) -> None:
        opened = session()
        metrics = train(opened, config(**settings))
        assert opened.forward_examples == sizes
        assert (metrics["steps"], metrics["examples_seen"]) == (len(sizes), sum(sizes))

    def test_warm_up_rises_linearly_to_the_learning_rate(self) -> None:
        # Without momentum and clipping, SGD from one point moves by rate times gradient.
        moved = []
        for warmup in (0, 4):
            opened = session()
            before = opened.read()
            after = trained(opened, config(local_steps=1, optimizer="sgd", warmup_steps=warmup, max_grad_norm=None))
            moved.append({name: after[name] - before[name] for name in after})
        for name in moved[0]:
            torch.testing.assert_close(moved[1][name], moved[0][name] / 4)

    def test_after_the_warm_up_the_full_rate_holds(self) -> None:
        warm, plain = session(), session()
        settings = config(local_steps=5, warmup_steps=1)
        assert same(trained(warm, settings), trained(plain, config(local_steps=5)))

    def test_frozen_tensors_keep_their_bits(self) -> None:
        opened = session()
        frozen = [name for name in opened.trainables if ".lora_A." in name]
        opened.train_all_except(frozen)
        before = opened.read()
        after = trained(opened, config(weight_decay=0.5))
        assert {name for name in after if torch.equal(before[name], after[name])} == set(frozen)


class TestMicroBatches:
    @pytest.mark.parametrize("micro", [1, 2, 3])
    def test_accumulating_gives_the_gradient_of_the_whole_batch(self, micro: int) -> None:
        whole, pieces = session(), session()
        settings: dict[str, Any] = {"optimizer": "sgd", "batch_size": 5}
        expected = trained(whole, config(**settings))
        metrics = train(pieces, config(micro_batch_size=micro, **settings))
        for name, value in pieces.read().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
        assert max(pieces.forward_examples) == micro
        assert metrics["steps"] == 4

    def test_out_of_memory_halves_the_pieces_until_they_fit_and_is_noted(self) -> None:
        tight, roomy = session(memory_examples=2), session()
        settings = config(batch_size=8, local_epochs=2, optimizer="sgd")
        halved = trained(tight, settings)
        for name, value in trained(roomy, settings).items():
            torch.testing.assert_close(halved[name], value, rtol=1e-5, atol=1e-6)
        assert max(tight.forward_examples) == 2
        assert tight.facts_noted == ["batch_halved", "batch_halved"]
        assert roomy.facts_noted == []

    def test_one_example_that_does_not_fit_is_an_error(self) -> None:
        with pytest.raises(torch.OutOfMemoryError):
            train(session(memory_examples=0), config())


class TestOrder:
    def test_every_epoch_is_a_permutation_of_its_own_by_the_seed(self) -> None:
        orders = [shuffled(seed, epoch, 100) for seed in (1, 2) for epoch in (0, 1)]
        assert all(sorted(order) == list(range(100)) for order in orders)
        assert len({tuple(order) for order in orders}) == 4
        assert orders[0] == shuffled(1, 0, 100)
        assert shuffled(0, 0, 8) == KNOWN_ORDER

    def test_the_global_generators_are_not_asked(self) -> None:
        torch.manual_seed(1)
        one = trained(session(), config())
        torch.manual_seed(2)
        assert same(one, trained(session(), config()))

    def test_a_method_may_choose_the_examples_of_each_epoch(self) -> None:
        asked: list[int] = []

        def order(epoch: int) -> Sequence[int]:
            asked.append(epoch)
            return [0, 1, 2] if epoch == 0 else [5]

        opened, by_hand = session(), session()
        metrics = train(opened, config(local_epochs=2), Hooks(order=order))
        assert metrics["examples_seen"] == 6
        assert set(asked) == {0, 1, 2, 3}
        expected = trained(by_hand, config(local_epochs=1), Hooks(order=lambda epoch: [0, 1, 2, 5, 5, 5]))
        assert same(opened.read(), expected)

    @pytest.mark.parametrize("order", [lambda epoch: [], lambda epoch: [1][epoch:]])
    def test_an_epoch_without_examples_is_an_error(self, order: Callable[[int], Sequence[int]]) -> None:
        with pytest.raises(ValueError, match="no example to train on"):
            train(session(), config(), Hooks(order=order))


class TestHooks:
    def test_masked_elements_keep_their_bits_whatever_the_optimizer_does(self) -> None:
        name = "layers.1.query.lora_A.weight"
        opened = session()
        mask = torch.zeros_like(opened.trainables[name], dtype=torch.bool)
        mask[0] = True
        before = opened.read()
        after = trained(opened, config(weight_decay=0.5), Hooks(masks={name: mask}))
        assert torch.equal(after[name][1], before[name][1])
        assert not torch.equal(after[name][0], before[name][0])
        assert not torch.equal(after["classifier.weight"], before["classifier.weight"])

    def test_what_a_mask_keeps_does_not_count_in_the_clipped_norm(self) -> None:
        """Plain SGD moves the one trained row by the rate times the largest norm that is allowed."""
        opened, name = session(), "layers.0.query.lora_B.weight"
        mask = torch.zeros_like(opened.trainables[name], dtype=torch.bool)
        mask[0] = True
        opened.train_all_except([other for other in opened.trainables if other != name])
        before = opened.read([name])[name]
        settings = config(optimizer="sgd", learning_rate=1.0, max_grad_norm=1e-3, local_steps=1)
        after = trained(opened, settings, Hooks(masks={name: mask}))
        assert float((after[name] - before).norm()) == pytest.approx(1e-3, rel=1e-2)

    def test_a_mask_of_all_true_changes_nothing(self) -> None:
        opened = session()
        masks = {name: torch.ones_like(value, dtype=torch.bool) for name, value in opened.trainables.items()}
        assert same(trained(opened, config(), Hooks(masks=masks)), trained(session(), config()))

    @pytest.mark.parametrize("micro", [None, 1])
    def test_the_penalty_counts_once_a_step_and_not_in_the_loss(self, micro: int | None) -> None:
        opened, plain = session(), session()
        settings = config(optimizer="sgd", local_steps=1, max_grad_norm=None, micro_batch_size=micro)
        weight = opened.trainables["classifier.weight"]
        metrics = train(opened, settings, Hooks(penalty=lambda: 3.0 * weight.sum()))
        plain_metrics = train(plain, settings)
        moved = opened.read()["classifier.weight"] - plain.read()["classifier.weight"]
        torch.testing.assert_close(moved, torch.full_like(moved, -0.05 * 3.0))
        assert metrics["loss"] == plain_metrics["loss"]


class TestMoments:
    @pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
    def test_two_runs_that_hand_them_on_are_one_run(self, optimizer: str) -> None:
        # Every step sees all examples: nothing but the moments tells two runs from one.
        settings = config(local_steps=2, batch_size=EXAMPLES, optimizer=optimizer, momentum=0.9)
        whole, halves, forgetful = session(), session(), session()
        expected = trained(whole, settings.model_copy(update={"local_steps": 4}))
        moments: dict[str, Tensor] = {}
        for _ in range(2):
            found = trained(halves, settings, Hooks(moments=moments))
            other = trained(forgetful, settings)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
        assert not all(torch.allclose(other[name], expected[name], atol=1e-4) for name in expected)

    def test_those_of_another_shape_are_passed_over(self) -> None:
        foreign = {"classifier.bias/exp_avg": torch.ones(7), "elsewhere/exp_avg": torch.ones(3)}
        assert same(trained(session(), config(), Hooks(moments=foreign)), trained(session(), config()))


@pytest.mark.parametrize("changes", [{}, {"local_epochs": 0.1}, {"local_steps": 3}, {"batch_size": 3}])
def test_the_steps_of_a_client_are_known_from_its_number_of_examples(changes: dict[str, Any]) -> None:
    assert train(session(), config(**changes))["steps"] == config(**changes).planned_steps(EXAMPLES)


class TestReports:
    def test_the_last_step_is_always_reported(self) -> None:
        opened = session()
        train(opened, config())
        assert opened.reports[-1] == (5, 5)
        assert len(opened.reports) <= 5

    def test_when_reports_fall_does_not_show_in_the_metrics(self) -> None:
        class Slow(TinySession):
            def loss(self, batch: Any, reduction: Literal["mean", "sum", "none"] = "mean") -> Tensor:
                time.sleep(0.11)
                return super().loss(batch, reduction)

        federation = TinyFederation(examples=EXAMPLES)
        slow, quick = Slow(federation, 1, 77), federation.open(1, 77)
        told = [train(opened, config(local_steps=12)) for opened in (slow, quick)]
        assert len(slow.reports) > 1
        assert told[0]["loss"] == told[1]["loss"]

    def test_a_loss_that_is_not_finite_ends_the_job_by_name(self) -> None:
        opened = session()
        opened.load({"classifier.bias": torch.full((3,), math.nan)})
        with pytest.raises(TrainingDiverged, match="learning_rate"):
            train(opened, config())

    def test_an_interruption_reaches_the_caller(self) -> None:
        class Interrupted(TinySession):
            def progress(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
                raise JobInterrupted

        with pytest.raises(JobInterrupted):
            train(Interrupted(TinyFederation(), 1, 0), config())
