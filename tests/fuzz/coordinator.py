"""A hostile coordinator, and a real agent with its training child and rows full of canaries.

It hands out leases and instructions as hypothesis makes them, and answers some calls otherwise than it should. After
each handful a good job must be done in time; nothing that was sent holds a canary, no file lies outside the agent's
folder, and no process grows.
"""

import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.growth import Growth
from tests.fuzz.judging import Canaries, LogReader
from tests.fuzz.leases import Job, good_jobs, hostile
from tests.fuzz.node import CANCEL_SECONDS, MOST_JOB_SECONDS, Node, node
from tests.fuzz.record import Finding
from tests.fuzz.turns import Turn
from tests.fuzz.wrong_answers import pointed, wrong_answers
from tests.worker_agent.canaries import ended
from tests.worker_agent.faults import Fault
from tests.worker_agent.hostile_coordinator import HostileCoordinator, whole
from tests.worker_agent.hostile_coordinator import hostile as another
from tests.worker_agent.recording_coordinator import RecordingCoordinator, serving
from tests.worker_agent.running_agent import digest_of

WHO = "hostile coordinator"
EXAMPLES = 30
FEWEST_OFFERS, MOST_OFFERS = 6, 16
MOST_FAULTS = 2
START_SECONDS = 240.0
GOOD_SECONDS = 60.0
MANY_SECONDS = 60.0 + MOST_OFFERS * (MOST_JOB_SECONDS + CANCEL_SECONDS)
"""Each job may take as long as the node's owner allows."""
LEASE = "POST /v1/jobs/lease"
POLLING_SECONDS = 0.02
CHUNK_BYTES = 2**20
DONE, NOTHING, LATE = "done", "nothing", "policy_seconds"


@dataclass(frozen=True)
class Batch:
    """What the agent is to live through, and the good job after it."""

    offers: list[tuple[bytes, bytes]]
    faults: list[tuple[str, Fault]]
    good: Job

    def shown(self) -> dict[str, Any]:
        """All of it, so that it can be sent again."""
        offers = [{"lease": b64(lease), "instruction": b64(content)} for lease, content in self.offers]
        return {"offers": offers, "faults": [(call, repr(fault)) for call, fault in self.faults]}


def b64(content: bytes) -> str:
    return b64encode(content).decode()


def fuzz(turn: Turn) -> None:
    """One batch after the other until the time is over."""
    turn.folder.mkdir(parents=True)
    with ExitStack() as stack:
        coordinator = stack.enter_context(serving(RecordingCoordinator(chunk_bytes=CHUNK_BYTES)))
        elsewhere = stack.enter_context(another(whole("200 OK", b"{}")))
        at = stack.enter_context(node(turn.folder, coordinator))
        trial = Trial(turn, coordinator, at, elsewhere)
        trial.warm_up()
        growth = Growth({"agent": lambda: at.process.pid, "training child": at.child_pid})

        def example(data: st.DataObject) -> None:
            if trial.live_through(data.draw(batches(trial.jobs))) == NOTHING:
                trial.begin_anew()
            growth.look(turn)

        turn.begin()
        turn.draw(example, EXAMPLES, lambda: None)
        growth.judge(turn)


@st.composite
def batches(draw: st.DrawFn, jobs: list[Job]) -> Batch:
    """A handful of leases, and a fault or two."""
    chosen = draw(st.lists(st.sampled_from(jobs), min_size=FEWEST_OFFERS, max_size=MOST_OFFERS))
    faults = draw(st.lists(wrong_answers(), max_size=MOST_FAULTS))
    return Batch(
        [draw(hostile(job, f"job_{number}")) for number, job in enumerate(chosen)],
        faults,
        draw(st.sampled_from(jobs)),
    )


class Trial:
    """An agent at work for one coordinator. `elsewhere`: a server that it has no business with."""

    def __init__(
        self, turn: Turn, coordinator: RecordingCoordinator, at: Node, elsewhere: HostileCoordinator
    ) -> None:
        self._turn, self._coordinator, self._at, self._elsewhere = turn, coordinator, at, elsewhere
        self._log = LogReader("agent", at.log, mixed=True)
        self._goods = self._leased = 0
        self.jobs = good_jobs(at.settings)

    def warm_up(self) -> None:
        """All good jobs, once: the child has loaded what it needs."""
        until = time.monotonic() + START_SECONDS
        while self._wait(self._offer_good(self.jobs[0]), START_SECONDS) == LATE:  # loading takes as long as a job may
            assert time.monotonic() < until, self._at.log.read_text(encoding="utf-8")
        for job in self.jobs:
            came = self._wait(self._offer_good(job), START_SECONDS)
            assert came == DONE, (job.lease, came, self._at.log.read_text(encoding="utf-8"))
            self._judge(None)

    def live_through(self, batch: Batch) -> str:
        """What came of the good job after the batch; finds whatever is wrong then."""
        for call, fault in batch.faults:
            self._coordinator.fail(call, pointed(fault, self._elsewhere.url))
        for lease, content in batch.offers:
            if content:
                self._coordinator.artifacts[digest_of(content)] = content
            self._coordinator.offers.append(lease)
        came = NOTHING
        if self._holds(self._asks_for_more, MANY_SECONDS):
            self._coordinator.faults.clear()
            came = self._wait(self._offer_good(batch.good), GOOD_SECONDS)
        if came != DONE:
            about = f"a good job after others: {came}"
            self._turn.add(Finding("stuck", WHO, about, batch.shown(), self._at.last_lines()))
        self._judge(batch)
        return came

    def begin_anew(self) -> None:
        """Another agent, at work."""
        self._coordinator.faults.clear()
        self._coordinator.offers.clear()
        self._at.close()
        self._at.start()
        self.warm_up()

    def _asks_for_more(self) -> bool:
        """Whether all was handed out, and the agent has come back since."""
        calls = self._coordinator.calls
        if self._coordinator.offers:
            self._leased = calls.count(LEASE)
        return calls.count(LEASE) > self._leased + 1

    def _offer_good(self, job: Job) -> str:
        self._goods += 1
        job_id = f"good_{self._goods}"
        if job.instruction:
            self._coordinator.artifacts[digest_of(job.instruction)] = job.instruction
        self._coordinator.offers.append(job.named(job_id))
        return job_id

    def _wait(self, job_id: str, seconds: float) -> str:
        """The code of what came of a job; DONE; or NOTHING in time."""
        done = self._holds(lambda: job_id in ended(self._coordinator), seconds)
        return str(ended(self._coordinator)[job_id].get("code", DONE)) if done else NOTHING

    def _holds(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Whether it does in time, while the agent is there."""
        until = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > until or self._at.process.poll() is not None:
                return False
            time.sleep(POLLING_SECONDS)
        return True

    def _judge(self, batch: Batch | None) -> None:
        shown = None if batch is None else batch.shown()
        for name, text in canaries(self._coordinator, self._at.private):
            self._turn.add(Finding("canary", WHO, name, shown, text))
        for file in self._at.strays():
            self._turn.add(Finding("canary", WHO, f"a file outside: {file}", shown, file))
        for head in self._elsewhere.heads:
            self._turn.add(Finding("canary", WHO, "a request elsewhere", shown, head))
        self._elsewhere.heads.clear()
        if self._at.process.poll() is not None:
            self._turn.add(Finding("ended", WHO, "the agent", shown, self._at.last_lines()))
        self._log.judge(self._turn, Canaries({}))
        if batch is not None:
            self._count()
        forget(self._coordinator)

    def _count(self) -> None:
        for job_id, body in ended(self._coordinator).items():
            what = "good" if job_id.startswith("good_") else str(body.get("code", DONE))
            self._turn.record.jobs[what] += 1
        self._turn.record.requests["agent"]["of any status"] += len(self._coordinator.calls)


def canaries(coordinator: RecordingCoordinator, private: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What is private and was sent, with the text that it stands in."""
    for text in (*coordinator.calls, *map(repr, coordinator.bodies), *coordinator.headers):
        yield from ((name, text) for name, secret in private.items() if secret.lower() in text.lower())


def forget(coordinator: RecordingCoordinator) -> None:
    """Nothing was asked, and there is nothing to be fetched."""
    for seen in (coordinator.calls, coordinator.bodies, coordinator.headers, coordinator.keys, coordinator.ranges):
        seen.clear()
    coordinator.artifacts.clear()
    coordinator.uploads.clear()
