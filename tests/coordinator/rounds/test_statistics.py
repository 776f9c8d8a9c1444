"""Means over the clients of a round."""

from coordinator.rounds.statistics import metrics_of

NAMES = {"loss", "accuracy"}


class TestMetrics:
    def test_names_that_nobody_asked_for_are_left_out(self) -> None:
        views = {"shared": {"loss": 1.0, "clients": 7.0, "own_loss": 9.0, "examples": 1.0}}
        assert metrics_of([views], NAMES) == {"loss": 1.0}

    def test_means_are_weighted_by_examples_and_own_models_named(self) -> None:
        first = {"shared": {"loss": 1.0, "accuracy": 0.5, "examples": 1.0}, "own": {"loss": 0.1, "examples": 1.0}}
        second = {"shared": {"loss": 2.0, "examples": 3.0}}
        assert metrics_of([first, second], NAMES) == {"accuracy": 0.5, "loss": 1.75, "own_loss": 0.1}

    def test_what_is_not_finite_or_weighs_nothing_is_left_out(self) -> None:
        bad = {"shared": {"loss": float("nan"), "accuracy": 1.0, "examples": 2.0}}
        empty = {"shared": {"accuracy": 0.0, "examples": 0.0}}
        assert metrics_of([bad, empty], NAMES) == {"accuracy": 1.0}
