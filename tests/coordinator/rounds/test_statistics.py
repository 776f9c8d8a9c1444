"""Statistics over the clients of a round."""

from collections.abc import Collection

from hypothesis import given
from hypothesis import strategies as st

from coordinator.rounds.statistics import OUTLIER, metrics_of, omission, outliers

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


NORMS = st.dictionaries(st.integers(0, 20), st.floats(0, 1e12), max_size=9)


class TestOutliers:
    def test_one_that_is_far_from_the_others_is_found(self) -> None:
        assert outliers({0: 1.0, 1: 101.0, 2: 1.0, 3: 0.5}) == [1]
        assert outliers({0: 1.0, 1: 100.0, 2: 1.0}) == []

    def test_two_cannot_say_which_of_them_is_far(self) -> None:
        assert outliers({0: 1.0, 1: 1e9}) == []

    def test_nobody_is_far_from_those_that_did_not_move(self) -> None:
        assert outliers({0: 0.0, 1: 1e-9, 2: 0.0}) == []

    @given(NORMS)
    def test_most_are_never_outliers_and_the_order_does_not_matter(self, norms: dict[int, float]) -> None:
        found = outliers(norms)
        assert found == outliers(dict(reversed(norms.items())))
        assert len(found) * 2 <= len(norms)

    @given(st.lists(st.floats(1.0, OUTLIER), min_size=3, max_size=9))
    def test_norms_within_the_factor_of_each_other_are_all_kept(self, norms: list[float]) -> None:
        assert outliers(dict(enumerate(norms))) == []


class TestOmission:
    def test_the_largest_single_one_that_helps_is_left_out(self) -> None:
        assert omission({0: 1.0, 1: 5.0, 2: 3.0}, lambda left: 2 in left) == [2]
        assert omission({0: 1.0, 1: 5.0, 2: 3.0}, bool) == [1]

    def test_where_no_single_one_helps_the_largest_few_are(self) -> None:
        assert omission({0: 1.0, 1: 5.0, 2: 3.0, 3: 2.0}, lambda left: {1, 2} <= set(left)) == [1, 2]

    def test_it_is_not_due_to_the_updates_if_none_helps_or_it_works_with_all(self) -> None:
        asked: list[Collection[int]] = []

        def never(left: Collection[int]) -> bool:
            asked.append(left)
            return False

        assert omission({0: 1.0, 1: 5.0}, never) is None
        assert all(len(left) < 2 for left in asked)
        assert omission({0: 1.0, 1: 5.0}, lambda _: True) is None
        assert omission({0: 1.0}, bool) is None
