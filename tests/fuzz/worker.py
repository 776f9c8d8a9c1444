"""A hostile worker among two honest ones: whatever it hands in and whenever, their federation comes to its end.

The lives are those of `tests.coordinator.life`. The hostile worker, of another organization, sends beside a good
result whatever hypothesis makes of one, for its own jobs and for others'.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import hypothesis
import requests
from hypothesis.stateful import run_state_machine_as_test

from tests.coordinator.life import VALUES, settings_of, value_actor
from tests.fuzz.background import BackgroundRig, background
from tests.fuzz.growth import Growth
from tests.fuzz.hostile_life import HostileLife
from tests.fuzz.hostile_watch import MALLORY
from tests.fuzz.judging import Canaries, LogReader
from tests.fuzz.place import coordinator, secrets, whereabouts
from tests.fuzz.scene import WHO, Abandoned, Scene
from tests.fuzz.turns import TimeOver, Turn
from tests.support.kept_rows import KeptRows
from tests.support.service import Service, key_of

LIVES = 20
STEPS = 25
TRAINED_BYTES = 1024**2
"""The most that a federation may train: whoever describes the model first could ask for a gigabyte otherwise."""


def fuzz(turn: Turn) -> None:
    """Lives until the time is over."""
    with scene(turn) as (shared, growth):
        turn.begin()
        while not turn.over:
            lives: Any = hypothesis.seed(turn.batch_seed())(lambda: HostileLife(shared))
            try:
                run_state_machine_as_test(lives, settings=settings_of(LIVES, STEPS))
            except Abandoned:
                pass
            except TimeOver:
                break
        growth.judge(turn)


@contextmanager
def scene(turn: Turn) -> Iterator[tuple[Scene, Growth]]:
    """Two workers of one organization and one of another, at a coordinator whose processes are watched."""
    with ExitStack() as stack:
        service, web = stack.enter_context(coordinator(turn.folder, max_trained_bytes=TRAINED_BYTES))
        tasks = stack.enter_context(background(turn.folder / "background.log"))
        session = stack.enter_context(requests.Session())
        session.trust_env = False
        rig = BackgroundRig(service, tasks)
        other = service.new_organization("another")
        actors = [value_actor(rig, index, other if index == MALLORY else None) for index in range(len(VALUES))]
        growth = Growth(
            {
                "web process, beside a hostile worker": lambda: web.pid,
                "background process": lambda: tasks.process.pid,
                "process of steps": tasks.steps_pid,
            }
        )
        logs = [LogReader("web process", web.log), LogReader("background process", tasks.log)]
        canaries = Canaries(secrets(keys(service, rig)), whereabouts())
        made = Scene(turn, rig, actors, canaries, logs, lambda: growth.look(turn), session, KeptRows())
        made.overhear("owner", rig.owner.owner)
        for actor in actors:
            made.overhear(WHO if actor is actors[MALLORY] else "honest worker", actor.http)
        yield made, growth


def keys(service: Service, rig: BackgroundRig) -> dict[str, str]:
    """Those of the admin and of the organization that owns the federations."""
    of_owner = {role: key_of(getattr(rig.owner, role)) for role in ("owner", "operator", "viewer")}
    return {"key of an admin": service.admin_key} | {f"key of the {role}": key for role, key in of_owner.items()}
