"""Schedule: the pure functions that coordinator and simulation share."""

import subprocess
import sys
from collections import Counter

import pytest

from federated.schedule import draw, evaluation_due, job_seed, stop_reason

ALIVE = range(1, 11)
KNOWN_DRAWS = [(2, 5, 6), (1, 5, 8), (1, 8, 10)]
KNOWN_SEED = 797315632506014714


class TestDraw:
    def test_the_cohort_is_sorted_and_as_large_as_wanted(self) -> None:
        cohort = draw(0, "train", 1, 1, ALIVE, (), (), 4)
        assert len(cohort) == 4
        assert list(cohort) == sorted(set(cohort))
        assert set(cohort) <= set(ALIVE)

    def test_a_known_draw_stays_what_it_is(self) -> None:
        assert [draw(0, "train", number, 1, ALIVE, (), (), 3) for number in (1, 2, 3)] == KNOWN_DRAWS

    def test_the_order_in_which_clients_are_listed_does_not_matter(self) -> None:
        forwards, backwards = (draw(3, "train", 2, 1, listed, (), (), 4) for listed in (ALIVE, reversed(ALIVE)))
        assert forwards == backwards

    def test_fewer_alive_than_wanted_are_all_drawn(self) -> None:
        assert draw(0, "train", 1, 1, [5, 2], (), (), 4) == (2, 5)
        assert draw(0, "train", 1, 1, [], (), (), 4) == ()
        assert draw(0, "train", 1, 1, ALIVE, (), (), 0) == ()

    def test_who_was_accepted_is_not_drawn_again(self) -> None:
        assert not set(draw(0, "train", 1, 2, ALIVE, (), (1, 2, 3), 10)) & {1, 2, 3}

    def test_a_retry_draws_the_silent_only_when_no_others_are_left(self) -> None:
        silent = (2, 4, 6)
        assert not set(draw(0, "train", 1, 2, ALIVE, silent, (1,), 6)) & set(silent)
        assert len(set(draw(0, "train", 1, 2, ALIVE, silent, (1,), 8)) & set(silent)) == 2

    @pytest.mark.parametrize("change", [{"seed": 1}, {"kind": "prepare"}, {"number": 2}, {"attempt": 2}])
    def test_seed_kind_number_and_attempt_each_change_the_draw(self, change: dict[str, object]) -> None:
        given = {"seed": 0, "kind": "train", "number": 1, "attempt": 1}
        one, other = (
            draw(**values, alive=range(100), silent=(), accepted=(), size=50) for values in (given, given | change)
        )  # type: ignore[arg-type]
        assert one != other

    def test_one_client_that_is_gone_changes_one_place(self) -> None:
        cohort = draw(0, "train", 1, 1, range(100), (), (), 10)
        without = draw(0, "train", 1, 1, set(range(100)) - {cohort[0]}, (), (), 10)
        assert len(set(cohort) & set(without)) == 9

    def test_over_many_rounds_all_are_drawn_about_equally_often(self) -> None:
        counts = Counter(
            ordinal for number in range(1000) for ordinal in draw(7, "train", number, 1, ALIVE, (), (), 3)
        )
        assert all(240 <= counts[ordinal] <= 360 for ordinal in ALIVE)


class TestJobSeed:
    def test_a_known_seed_stays_what_it_is(self) -> None:
        assert job_seed(0, "train", 1, 1, "train") == KNOWN_SEED

    def test_every_part_changes_the_seed(self) -> None:
        seeds = {
            job_seed(seed, kind, number, ordinal, purpose)
            for seed in (0, 1)
            for kind in ("prepare", "train")
            for number in (1, 11)
            for ordinal in (1, 11)
            for purpose in ("train", "evaluate")
        }
        assert len(seeds) == 32
        assert all(0 <= seed < 2**63 for seed in seeds)


class TestEvaluationDue:
    @pytest.mark.parametrize(("every", "due"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (10, [7]), (None, [])])
    def test_it_is_due_every_n_rounds_and_after_the_last(self, every: int | None, due: list[int]) -> None:
        assert [number for number in range(1, 8) if evaluation_due(number, 7, every)] == due


class TestStopReason:
    @pytest.mark.parametrize(
        ("losses", "reason"),
        [
            ([], None),
            ([3.0, 2.0], None),
            ([3.0, 2.0, 2.5, 2.0], "patience"),
            ([3.0, 2.0, 2.5, 1.9], None),
            ([0.4], "target"),
        ],
    )
    def test_of_a_loss_lower_is_better(self, losses: list[float], reason: str | None) -> None:
        assert stop_reason([{"loss": loss} for loss in losses], 10, "loss", 0.5, 2) == reason

    @pytest.mark.parametrize(
        ("values", "reason"),
        [([0.5, 0.6], None), ([0.6, 0.5, 0.6], "patience"), ([0.5, 0.95], "target"), ([0.5, 0.9], "target")],
    )
    def test_of_an_accuracy_higher_is_better(self, values: list[float], reason: str | None) -> None:
        assert stop_reason([{"accuracy": value} for value in values], 10, "accuracy", 0.9, 2) == reason

    def test_rounds_without_the_metric_do_not_count_toward_patience(self) -> None:
        history = [{"accuracy": 0.5}, {}, {"train_loss": 1.0}, {"accuracy": 0.4}]
        assert stop_reason(history, 10, "accuracy", None, 2) is None
        assert stop_reason([*history, {"accuracy": 0.3}], 10, "accuracy", None, 2) == "patience"

    def test_a_value_that_is_not_finite_is_passed_over(self) -> None:
        history = [{"loss": 1.0}, {"loss": float("nan")}, {"loss": float("inf")}]
        assert stop_reason(history, 10, "loss", None, 1) is None

    def test_the_last_round_ends_it_whatever_the_metric(self) -> None:
        assert stop_reason([{}, {}], 2, None, None, None) == "rounds"
        assert stop_reason([{}], 2, None, None, None) is None


def test_the_schedule_needs_the_standard_library_alone() -> None:
    program = "import sys, federated.schedule; print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == "[]"
