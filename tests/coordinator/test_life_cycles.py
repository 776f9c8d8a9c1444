"""Whatever owners, workers, clocks and lost messages do, and in whatever order: the life cycles hold.

A machine of rules drives a real web process, the real tasks and a real database; `life_cycles.Watch` looks at all of
it after each rule. In the end the weather turns fair, and the federation must come to an end by itself.
FEDLOOM_FUZZ_EXAMPLES says how many lives there are; they are the same in each run.
"""

import os
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

if TYPE_CHECKING:
    from tests.support.federation_rig import FederationRig

EXAMPLES = int(os.environ.get("FEDLOOM_FUZZ_EXAMPLES", "0")) or 8
STEPS = 25


def test_they_hold_whatever_happens(rig: "FederationRig") -> None:
    from tests.coordinator.life import VALUES, Life, settings_of, value_actor  # loads torch

    actors = [value_actor(rig, index) for index in range(len(VALUES))]
    chosen = settings(settings_of(EXAMPLES, STEPS), derandomize=True)
    run_state_machine_as_test(lambda: Life(rig, actors), settings=chosen)
