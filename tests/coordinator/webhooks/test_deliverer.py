"""The turns of webhooks, and the delivery threads that follow them."""

import threading
import time
from collections.abc import Callable

from coordinator.webhooks.deliverer import MOST_IN_LINE, Deliverer, Turns

WAIT_SECONDS = 30.0
MOMENT_SECONDS = 0.2


def order(turns: Turns) -> list[str]:
    """Webhooks in the order in which one thread would send to them, each having one message."""
    webhooks = []
    while (turn := turns.take()) is not None:
        webhooks.append(turn[1])
        turns.end(*turn, more=False)
    return webhooks


def turns_of(*webhooks: str) -> Turns:
    """Each webhook is of the organization that its first letter names."""
    turns = Turns()
    for webhook in webhooks:
        turns.add(webhook[0], webhook)
    return turns


class TestTurns:
    def test_organizations_take_turns(self) -> None:
        assert order(turns_of("a1", "a2", "a3", "b1", "c1", "c2")) == ["a1", "b1", "c1", "a2", "c2", "a3"]

    def test_an_organization_has_one_turn_at_a_time(self) -> None:
        turns = turns_of("a1", "a2", "b1")
        assert [turns.take(), turns.take(), turns.take()] == [("a", "a1"), ("b", "b1"), None]
        turns.add("a", "a3")
        assert turns.take() is None
        turns.end("a", "a1", more=False)
        assert order(turns) == ["a2", "a3"]

    def test_a_webhook_with_more_waits_behind_the_others_of_its_organization(self) -> None:
        turns = turns_of("a1", "a2")
        turns.take()
        turns.end("a", "a1", more=True)
        assert order(turns) == ["a2", "a1"]

    def test_a_webhook_stands_in_line_once_however_often_it_is_handed_over(self) -> None:
        assert order(turns_of("a1", "a1", "a2", "a1")) == ["a1", "a2"]

    def test_what_is_handed_over_during_a_turn_has_another(self) -> None:
        turns = turns_of("a1")
        turns.take()
        turns.add("a", "a1")
        turns.end("a", "a1", more=True)
        assert order(turns) == ["a1"]

    def test_a_line_is_bounded(self) -> None:
        full = [f"a{number}" for number in range(MOST_IN_LINE)]
        assert order(turns_of(*full, "a-late", "b1")) == [full[0], "b1", *full[1:]]

    def test_nobody_has_a_turn_after_closing(self) -> None:
        turns = turns_of("a1")
        turns.is_closed = True
        assert turns.take() is None


class Sender:
    """Sends a message of any webhook; those of organization `a` hang until `answer` is set."""

    def __init__(self, **messages: int) -> None:
        self.left, self.arrivals = messages, list[str]()
        self.answer, self._lock = threading.Event(), threading.Lock()

    def send_next(self, webhook_id: str) -> bool:
        with self._lock:
            if not self.left.get(webhook_id):
                return False
            self.left[webhook_id] -= 1
        if webhook_id[0] == "a":
            self.answer.wait()
        self.arrivals.append(webhook_id)
        return True

    def hand_all(self, deliverer: Deliverer) -> None:
        for webhook in list(self.left):
            assert deliverer.hand(webhook[0], webhook)

    def begun(self) -> list[str]:
        """Webhooks that have messages on their way or sent."""
        return [webhook for webhook, left in self.left.items() if left == 0]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class TestDeliverer:
    def test_an_organization_whose_receivers_hang_holds_one_thread(self) -> None:
        sender = Sender(**{f"a{number}": 1 for number in range(10)}, b1=3, c1=1, c2=1)
        deliverer = Deliverer(sender.send_next)
        with deliverer.running(2, WAIT_SECONDS):
            sender.hand_all(deliverer)
            until(lambda: len(sender.arrivals) == 5)
            assert sorted(sender.arrivals) == ["b1", "b1", "b1", "c1", "c2"]
            assert sender.begun() == ["a0", "b1", "c1", "c2"]
            sender.answer.set()
            until(lambda: len(sender.arrivals) == 15)
        assert sender.arrivals[5:] == [f"a{number}" for number in range(10)]

    def test_a_webhook_with_many_messages_gives_way_after_its_turn(self) -> None:
        sender = Sender(a1=1, b1=3, b2=1, c1=1)
        deliverer = Deliverer(sender.send_next, turn_seconds=0)
        with deliverer.running(1, WAIT_SECONDS):
            deliverer.hand("a", "a1")
            until(lambda: sender.begun() == ["a1"])
            sender.hand_all(deliverer)
            sender.answer.set()
            until(lambda: len(sender.arrivals) == 6)
        assert sender.arrivals == ["a1", "b1", "c1", "b2", "b1", "b1"]

    def test_different_organizations_are_sent_to_at_the_same_time(self) -> None:
        both = threading.Barrier(2)
        pairs = []

        def send_next(webhook_id: str) -> bool:
            both.wait(WAIT_SECONDS)
            pairs.append(webhook_id)
            return False

        deliverer = Deliverer(send_next)
        with deliverer.running(2, WAIT_SECONDS):
            deliverer.hand("a", "a1")
            deliverer.hand("b", "b1")
            until(lambda: len(pairs) == 2)

    def test_an_error_ends_the_turn_and_no_thread(self) -> None:
        attempts = []

        def send_next(webhook_id: str) -> bool:
            attempts.append(webhook_id)
            raise ConnectionError("no database")

        deliverer = Deliverer(send_next)
        with deliverer.running(1, WAIT_SECONDS):
            for count, webhook in enumerate(("a1", "b1", "a1"), start=1):
                deliverer.hand(webhook[0], webhook)
                until(lambda: len(attempts) == count)  # noqa: B023 - waited for at once
        assert attempts == ["a1", "b1", "a1"]


class TestClosing:
    def test_a_message_on_its_way_is_waited_for_and_no_other_is_begun(self) -> None:
        sender = Sender(a1=2, a2=1)
        deliverer = Deliverer(sender.send_next)
        with deliverer.running(2, WAIT_SECONDS):
            sender.hand_all(deliverer)
            until(lambda: sender.left["a1"] == 1)
            threading.Timer(MOMENT_SECONDS, sender.answer.set).start()
        assert (sender.arrivals, sender.left) == (["a1"], {"a1": 1, "a2": 1})
        assert not deliverer.hand("a", "a1")

    def test_it_waits_no_longer_than_it_was_told(self) -> None:
        sender = Sender(a1=1)
        deliverer = Deliverer(sender.send_next)
        with deliverer.running(1, MOMENT_SECONDS):
            sender.hand_all(deliverer)
            until(lambda: sender.begun() == ["a1"])
            began = time.monotonic()
        assert MOMENT_SECONDS <= time.monotonic() - began < WAIT_SECONDS
        sender.answer.set()

    def test_it_may_run_again(self) -> None:
        sender = Sender(b1=1, b2=1)
        deliverer = Deliverer(sender.send_next)
        for webhook in ("b1", "b2"):
            with deliverer.running(1, WAIT_SECONDS):
                assert deliverer.hand("b", webhook)
                until(lambda: webhook in sender.arrivals)  # noqa: B023 - waited for at once
        assert sender.arrivals == ["b1", "b2"]
