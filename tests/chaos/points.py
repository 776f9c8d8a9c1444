"""The crash points: every named step of a round, times every process that may die at it.

A step is a function of the product that is about to run (`entered`) or has just returned (`left`). The product knows
nothing of it: `watched/sitecustomize.py` tells of the functions named here in the processes of a test, and nowhere
else. What is left inside a transaction is uncommitted still.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Victim = Literal["web", "background", "beat", "worker", "executor", "redis", "postgres"]
VICTIMS: tuple[Victim, ...] = ("web", "background", "beat", "worker", "executor", "redis", "postgres")
SERVERS: tuple[Victim, ...] = ("redis", "postgres")
"""Those that an installation over files does without."""

LONGEST_OUTAGE_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class Step:
    """A named step. `place`: module:qualified name."""

    name: str
    when: Literal["entered", "left"]
    place: str


STEPS: tuple[Step, ...] = (
    # web: what agents ask for
    Step("offer_leased", "left", "coordinator.jobs.service.leasing:_hand_out"),
    Step("lease_unanswered", "entered", "coordinator.jobs.endpoints:_deliver"),
    Step("instruction_opened", "left", "coordinator.artifacts.endpoints:stream"),
    Step("upload_announced", "left", "coordinator.artifacts.service.uploads:announce"),
    Step("chunk_stored", "left", "coordinator.artifacts.store.chunks:put"),
    Step("upload_unanswered", "left", "coordinator.artifacts.service.uploads:complete"),
    Step("submission_kept", "left", "coordinator.jobs.service.submission:_keep"),
    Step("submission_unanswered", "left", "coordinator.jobs.endpoints:_settle"),
    # web and background: a commit is done, its messages are not sent
    Step("messages_pending", "entered", "coordinator.queue.wakeups:_send_all"),
    Step("message_sent", "left", "coordinator.queue.wakeups:send"),
    # background: the federation
    Step("reconciling", "left", "coordinator.federations.service.progress:expire"),
    Step("described", "left", "coordinator.federations.service.progress:_judge"),
    Step("round_opened", "left", "coordinator.federations.service.progress:_open_round"),
    Step("completed", "left", "coordinator.federations.service.progress:end"),
    # background: the round, each step claimed, computed, recorded
    Step("cohort_drawn", "left", "coordinator.rounds.service.transitions:_draw"),
    Step("step_claimed", "entered", "coordinator.rounds.tasks:do"),
    Step("chunks_assembled", "left", "coordinator.artifacts.store.chunks:assemble"),
    Step("state_started", "left", "coordinator.rounds.conductor:start"),
    Step("instructions_planned", "left", "coordinator.rounds.conductor:plan"),
    Step("updates_checked", "left", "coordinator.rounds.conductor:check"),
    Step("update_accepted", "left", "coordinator.jobs.service.dispatch:accept"),
    Step("aggregation_cut", "left", "coordinator.rounds.conductor:aggregate"),
    Step("shard_aggregated", "left", "coordinator.rounds.conductor:aggregate_shard"),
    Step("shard_recorded", "left", "coordinator.rounds.service.results:record_shard"),
    Step("shards_joined", "left", "coordinator.rounds.conductor:join"),
    Step("artifact_stored", "left", "coordinator.artifacts.store.objects:put_file"),
    Step("step_recorded", "left", "coordinator.rounds.service.results:record"),
    Step("round_closed", "left", "coordinator.rounds.service.transitions:close"),
    # beat
    Step("tick_due", "entered", "celery.beat:Scheduler.apply_async"),
    Step("tick_sent", "left", "celery.beat:Scheduler.apply_async"),
    # worker: the agent
    Step("lease_heard", "entered", "worker_agent.runtime.slot:Slot._take"),
    Step("instruction_fetched", "left", "worker_agent.coordinator_api.downloads:ArtifactCache.fetch"),
    Step("job_ordered", "entered", "worker_agent.runtime.executor:Executor.run"),
    Step("job_heard", "left", "worker_agent.runtime.executor:Executor.run"),
    Step("result_kept", "left", "worker_agent.storage.outbox:Outbox.keep"),
    Step("update_uploaded", "left", "worker_agent.coordinator_api.client:CoordinatorClient.upload"),
    Step("result_submitted", "left", "worker_agent.coordinator_api.client:CoordinatorClient.submit"),
    Step("result_forgotten", "left", "worker_agent.storage.outbox:Outbox.remove"),
    # executor: the training process
    Step("job_begun", "entered", "worker_agent.training.jobs:run_job"),
    Step("model_opened", "left", "worker_agent.training.jobs:_open"),
    Step("training", "entered", "worker_agent.training.child:_Child._report"),
    Step("update_written", "left", "worker_agent.training.jobs:_train"),
    Step("evaluated", "left", "worker_agent.training.jobs:_evaluate"),
    Step("result_untold", "left", "worker_agent.training.child:_Child._done"),
)


@dataclass(frozen=True, slots=True)
class Point:
    """One process dies at one step. `turn`: in 0 to 1, at which of the times that a run comes by there.

    `outage_seconds`: how long it stays away, where nothing but the test starts it again.
    """

    step: Step
    victim: Victim
    turn: float
    outage_seconds: float
    node: int

    def occurrence(self, times: int) -> int:
        """The step's how-manieth time, from 1, of a run that comes by `times` times."""
        return 1 + min(int(self.turn * times), times - 1)


def step(name: str) -> Step:
    """The step of this name."""
    return next(known for known in STEPS if known.name == name)


def drawn(seed: int, victims: Sequence[Victim], nodes: int) -> list[Point]:
    """The whole matrix of steps and victims in an order that the seed decides; each with a turn of its own."""
    chance = random.Random(seed)
    matrix = list(itertools.product(STEPS, victims))
    chance.shuffle(matrix)
    return [
        Point(at, victim, chance.random(), LONGEST_OUTAGE_SECONDS * chance.random(), chance.randrange(nodes))
        for at, victim in matrix
    ]
