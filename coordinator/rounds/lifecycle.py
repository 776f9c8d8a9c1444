"""Life cycle of a round: its states, its steps, and the pure function that selects the next step.

`next_step` depends on the snapshot and the time alone. It is called again after every event, so a message that is
lost, doubled or late does no harm. A step's `label` is the status that the API shows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar

from coordinator.errors import Conflict
from coordinator.rounds.facts import JobFacts, Rules, Snapshot
from coordinator.rounds.statistics import most_frequent

WAITING = "waiting"
COLLECTING = "collecting"
AGGREGATING = "aggregating"
EVALUATING = "evaluating"
CLOSED = "closed"
FAILED = "failed"
WITHDRAWN = "withdrawn"
STATES = (WAITING, COLLECTING, AGGREGATING, EVALUATING, CLOSED, FAILED, WITHDRAWN)
TERMINAL = frozenset({CLOSED, FAILED, WITHDRAWN})
OPEN = frozenset(STATES) - TERMINAL

MOVES: Mapping[str, frozenset[str]] = {
    WAITING: frozenset({COLLECTING, FAILED, WITHDRAWN}),
    COLLECTING: frozenset({AGGREGATING, FAILED, WITHDRAWN}),
    AGGREGATING: frozenset({EVALUATING, CLOSED, FAILED, WITHDRAWN}),
    EVALUATING: frozenset({CLOSED, FAILED, WITHDRAWN}),
    CLOSED: frozenset(),
    FAILED: frozenset(),
    WITHDRAWN: frozenset(),
}

OPEN_JOB_STATES = frozenset({"offered", "leased"})
QUORUM_MISSED, NOT_ENOUGH_CLIENTS, STEP_DIED = "quorum_missed", "not_enough_clients", "step_died"
PAUSED = "paused"
MAX_DEATHS, MAX_LOSSES = 2, 10
"""A step fails its round after so many deaths of its process, or so many claims that expired without a result."""


def move(state: str, to: str) -> str:
    """The new state of a round. Raises Conflict for a move that is not in the table."""
    if to not in MOVES[state]:
        raise Conflict("round_state", f"A round that is {state} cannot become {to}.")
    return to


@dataclass(frozen=True, slots=True)
class Start:
    """Make the federation's first state."""

    label: ClassVar[str] = "starting"


@dataclass(frozen=True, slots=True)
class Draw:
    """Draw `count` clients, or all of them if the state asks for everybody."""

    label: ClassVar[str] = "drawing"
    count: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Make the instructions of the cohort and offer the jobs."""

    label: ClassVar[str] = "planning"


@dataclass(frozen=True, slots=True)
class Check:
    """Accept or reject these submitted updates, in this order."""

    job_ids: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"checking {len(self.job_ids)} updates"


@dataclass(frozen=True, slots=True)
class LeaveOut:
    """Go on without the updates of these clients, whose norms are far from the others'."""

    label: ClassVar[str] = "leaving_out_updates"
    ordinals: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Make the next state and its adapter from the accepted updates. `missed_deadline`: some clients were late."""

    label: ClassVar[str] = "aggregating"
    missed_deadline: bool = False


@dataclass(frozen=True, slots=True)
class Join:
    """Make the next state and its adapter from the results of the shards."""

    label: ClassVar[str] = "joining_shards"


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Make the instructions of the evaluation and offer its jobs."""

    label: ClassVar[str] = "planning_evaluation"


@dataclass(frozen=True, slots=True)
class Close:
    """End the round with its result."""

    label: ClassVar[str] = "closing"


@dataclass(frozen=True, slots=True)
class Retry:
    """Open another attempt, which keeps the updates that this one accepted."""

    label: ClassVar[str] = "opening_another_attempt"
    detail: str


@dataclass(frozen=True, slots=True)
class Fail:
    """End the round without a result. The federation fails with it."""

    label: ClassVar[str] = "failing"
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing before `until`, unless something happens. None: no deadline."""

    until: datetime | None
    label: str


ConductorStep = Start | Plan | Check | Aggregate | Join | Evaluate
"""The steps that need tensors: `steps` names the conductor's function and the recorder of each."""
LocalStep = Draw | LeaveOut | Close | Retry | Fail
"""The steps that change rows alone, within one transaction."""
Step = ConductorStep | LocalStep | Wait


def next_step(snapshot: Snapshot, rules: Rules, now: datetime) -> Step:
    """The next step of an open round. Raises Conflict for a round that has ended."""
    if snapshot.state == WAITING:
        return _draw(snapshot, rules, now) if snapshot.has_start else Start()
    if snapshot.state == COLLECTING:
        return _collect(snapshot, rules, now) if snapshot.has_plan else Plan()
    if snapshot.state == AGGREGATING:
        if not snapshot.has_result:
            return _aggregate(snapshot, rules)
        return Evaluate() if snapshot.evaluation_due and not snapshot.evaluation_planned else Close()
    if snapshot.state == EVALUATING:
        return _evaluate(snapshot, now)
    raise Conflict("round_state", f"The round is {snapshot.state}; nothing follows.")


def _draw(snapshot: Snapshot, rules: Rules, now: datetime) -> Step:
    target = rules.clients_per_round + rules.over_selection
    if len(snapshot.accepted) >= rules.clients_per_round and not snapshot.everybody:
        return Draw(0)
    there = len(snapshot.accepted) + len(snapshot.eligible)
    missing = len(snapshot.eligible) if snapshot.everybody else target - len(snapshot.accepted)
    until = snapshot.opened_at + timedelta(seconds=rules.wait_for_clients_seconds)
    if there >= target or (now >= until and there >= rules.min_clients):
        return Draw(missing)
    if now >= until:
        wait = f"after {rules.wait_for_clients_seconds:g} s of waiting."
        detail = f"{there} of at least {rules.min_clients} clients were there {wait}"
        return Fail(NOT_ENOUGH_CLIENTS, detail + _most_frequent_reason(snapshot))
    return Wait(until, f"waiting_for_clients {there}/{target}, {_time_left(until, now)}")


def _collect(snapshot: Snapshot, rules: Rules, now: datetime) -> Step:
    target = _target(snapshot, rules)
    late = snapshot.deadline_at is not None and now >= snapshot.deadline_at
    if len(snapshot.accepted) >= target:
        return LeaveOut(snapshot.outliers) if snapshot.outliers else Aggregate()
    submissions = _in_time(snapshot.jobs, snapshot.deadline_at)
    if submissions:
        return Check(tuple(job.id for job in submissions[: target - len(snapshot.accepted)]))
    if any(job.state in OPEN_JOB_STATES for job in snapshot.jobs) and not late:
        return Wait(snapshot.deadline_at, _collecting_status(snapshot, target, now))
    if len(snapshot.accepted) >= rules.min_clients:
        return LeaveOut(snapshot.outliers) if snapshot.outliers else Aggregate(missed_deadline=late)
    return _quorum_failure(snapshot, rules)


def _quorum_failure(snapshot: Snapshot, rules: Rules) -> Step:
    """Another attempt, unless too few clients remain for the quorum."""
    detail = f"{len(snapshot.accepted)} of at least {rules.min_clients} updates were accepted ({_losses(snapshot)})."
    detail += _most_frequent_reason(snapshot)
    if snapshot.remaining is not None and len(snapshot.accepted | snapshot.remaining) < rules.min_clients:
        others = len(snapshot.remaining - snapshot.accepted)
        return Fail(QUORUM_MISSED, f"{detail} Another attempt could ask {others} more clients, which is too few.")
    if snapshot.retries < rules.max_round_retries:
        return Retry(detail)
    return Fail(QUORUM_MISSED, f"{detail} {snapshot.retries + 1} attempts were made.")


def _most_frequent_reason(snapshot: Snapshot) -> str:
    reason = most_frequent(snapshot.losses)
    return "" if reason is None else f" {reason[1]} of {len(snapshot.participants)} clients: {reason[0]}."


def _aggregate(snapshot: Snapshot, rules: Rules) -> Step:
    if len(snapshot.accepted) < rules.min_clients:  # some were left out after they were accepted
        return _quorum_failure(snapshot, rules)
    if snapshot.shards is None:
        return Aggregate()
    done_shards, shard_count = snapshot.shards
    return Join() if done_shards == shard_count else Wait(None, f"aggregating {done_shards}/{shard_count} shards")


def _evaluate(snapshot: Snapshot, now: datetime) -> Step:
    still_open = [job for job in snapshot.evaluations if job.state in OPEN_JOB_STATES]
    if not still_open or (snapshot.evaluation_deadline_at is not None and now >= snapshot.evaluation_deadline_at):
        return Close()
    submissions = sum(job.state == "submitted" for job in snapshot.evaluations)
    until = snapshot.evaluation_deadline_at
    return Wait(until, f"evaluating {submissions}/{len(snapshot.evaluations)}, {_time_left(until, now)}")


def _target(snapshot: Snapshot, rules: Rules) -> int:
    """Number of accepted updates that ends collecting at once."""
    if snapshot.everybody:
        return max(len(snapshot.accepted | set(snapshot.cohort)), rules.min_clients)
    return rules.clients_per_round


def _in_time(jobs: Sequence[JobFacts], deadline_at: datetime | None) -> list[JobFacts]:
    """Jobs submitted before the deadline, in order of submission."""
    submissions = [
        job
        for job in jobs
        if job.state == "submitted"
        and (deadline_at is None or job.submitted_at is None or job.submitted_at <= deadline_at)
    ]
    return sorted(submissions, key=lambda job: (job.submitted_number or 0, job.ordinal))


def _collecting_status(snapshot: Snapshot, target: int, now: datetime) -> str:
    training = sum(job.state == "leased" for job in snapshot.jobs)
    waiting = sum(job.state == "offered" for job in snapshot.jobs)
    losses = len(_lost_jobs(snapshot))
    counts = [(training, "training"), (waiting, "not started"), (losses, "lost")]
    parts = [f"{count} {name}" for count, name in counts if count]
    return ", ".join([f"collecting {len(snapshot.accepted)}/{target}", *parts, _time_left(snapshot.deadline_at, now)])


def _losses(snapshot: Snapshot) -> str:
    losses = [f"client {job.ordinal}: {'left out' if job.left_out else job.state}" for job in _lost_jobs(snapshot)]
    silent = [f"client {job.ordinal}: no answer" for job in snapshot.jobs if job.state in OPEN_JOB_STATES]
    return ", ".join(losses + silent) or "nobody was asked"


def _lost_jobs(snapshot: Snapshot) -> list[JobFacts]:
    return [
        job for job in snapshot.jobs if job.left_out or job.state not in OPEN_JOB_STATES | {"submitted", "accepted"}
    ]


def _time_left(until: datetime | None, now: datetime) -> str:
    if until is None:
        return "no deadline"
    return f"{max(0, math.ceil((until - now).total_seconds()))} s left"
