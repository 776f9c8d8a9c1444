"""The table of crash points, and the gate that holds a process at one of them."""

import importlib
import os
import subprocess
import sys
from functools import reduce

from tests.chaos.gate import Gate, gated
from tests.chaos.points import STEPS, VICTIMS, drawn, step

SENDS = "from coordinator.queue import wakeups; wakeups._send_all([]); wakeups._send_all([]); print('done')"
DONE = b"done\n"
WAIT_SECONDS = 120


def sender(gate: Gate | None) -> "subprocess.Popen[bytes]":
    """A process that comes by the step `messages_pending` twice."""
    environment = {**os.environ, **(gate.environment if gate is not None else {})}
    return subprocess.Popen([sys.executable, "-c", SENDS], env=environment, stdout=subprocess.PIPE)


class TestTheTable:
    def test_every_step_is_a_function_of_its_own_name(self) -> None:
        assert len({known.name for known in STEPS}) == len(STEPS)
        for known in STEPS:
            module, _, name = known.place.partition(":")
            assert callable(reduce(getattr, name.split("."), importlib.import_module(module))), known

    def test_a_seed_draws_each_step_with_each_victim_once_and_always_in_the_same_order(self) -> None:
        points = drawn(7, VICTIMS, nodes=2)
        cells = {(point.step.name, point.victim) for point in points}
        assert len(points) == len(cells) == len(STEPS) * len(VICTIMS)
        assert points == drawn(7, VICTIMS, nodes=2) != drawn(8, VICTIMS, nodes=2)

    def test_a_turn_falls_on_one_of_the_times_that_a_run_comes_by(self) -> None:
        assert {point.occurrence(3) for point in drawn(0, VICTIMS, nodes=2)} == {1, 2, 3}


class TestTheGate:
    def test_the_armed_step_holds_its_process_until_it_is_let_go(self) -> None:
        with gated() as gate:
            gate.count_anew(step("messages_pending"), occurrence=2)
            process = sender(gate)
            reached = gate.held(WAIT_SECONDS)
            assert reached is not None
            assert (reached.pid, process.poll(), gate.counts["messages_pending"]) == (process.pid, None, 2)
            gate.let_go()
            assert process.communicate(timeout=WAIT_SECONDS) == (DONE, None)

    def test_a_process_goes_on_when_the_gate_is_gone(self) -> None:
        with gated() as gate:
            gate.count_anew(step("messages_pending"))
            process = sender(gate)
            assert gate.held(WAIT_SECONDS) is not None
        assert process.communicate(timeout=WAIT_SECONDS) == (DONE, None)

    def test_without_the_variable_nothing_is_watched(self) -> None:
        with gated() as gate:
            gate.count_anew(step("messages_pending"))
            assert sender(None).communicate(timeout=WAIT_SECONDS) == (DONE, None)
            assert not gate.counts
