"""What comes next in a round: a pure function of what was read and of the time.

`next_step` is asked again after everything that happens. It remembers nothing, so a message that is lost, doubled
or late does no harm.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

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
ENDED = frozenset({CLOSED, FAILED, WITHDRAWN})
OPEN = frozenset(STATES) - ENDED

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
"""Deaths of its process, and claims that passed without a result, with which a step fails its round."""


def move(state: str, to: str) -> str:
    """The new state of a round. Raises Conflict for a move that its life cycle does not have."""
    if to not in MOVES[state]:
        raise Conflict("round_state", f"A round that is {state} cannot become {to}.")
    return to


@dataclass(frozen=True, slots=True)
class Start:
    """Make the federation's first state."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Draw `wanted` clients (all of them, where the state asks for everybody)."""

    wanted: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Make the instructions of the cohort and offer the jobs."""


@dataclass(frozen=True, slots=True)
class Check:
    """Accept or reject these submitted updates, in this order."""

    job_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LeaveOut:
    """Go on without the updates of these clients, whose norms are far from the others'."""

    ordinals: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Make the next state and its adapter of what was accepted. `missed_deadline`: some did not answer in time."""

    missed_deadline: bool = False


@dataclass(frozen=True, slots=True)
class Join:
    """Make the next state and its adapter of what the shards made."""


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Make the instructions of the evaluation and offer its jobs."""


@dataclass(frozen=True, slots=True)
class Close:
    """The round is done."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Open another attempt that keeps what this one accepted."""

    detail: str


@dataclass(frozen=True, slots=True)
class Fail:
    """The round cannot be done, and so the federation cannot go on."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before `until`, unless something happens; `what` is for people. None: not by time."""

    until: datetime | None
    what: str


Step = Start | Draw | Plan | Check | LeaveOut | Aggregate | Join | Evaluate | Close | Retry | Fail | Wait


def next_step(seen: Snapshot, rules: Rules, now: datetime) -> Step:
    """What to do next in a round that has not ended. Raises Conflict for one that has."""
    if seen.state == WAITING:
        return _draw(seen, rules, now) if seen.started else Start()
    if seen.state == COLLECTING:
        return _collect(seen, rules, now) if seen.planned else Plan()
    if seen.state == AGGREGATING:
        if not seen.aggregated:
            return _aggregate(seen, rules)
        return Evaluate() if seen.evaluation_due and not seen.evaluation_planned else Close()
    if seen.state == EVALUATING:
        return _evaluate(seen, now)
    raise Conflict("round_state", f"The round is {seen.state}; nothing follows.")


def _draw(seen: Snapshot, rules: Rules, now: datetime) -> Step:
    wanted = rules.clients_per_round + rules.over_selection
    if len(seen.accepted) >= rules.clients_per_round and not seen.everybody:
        return Draw(0)
    there = len(seen.accepted) + len(seen.eligible)
    missing = len(seen.eligible) if seen.everybody else wanted - len(seen.accepted)
    until = seen.opened_at + timedelta(seconds=rules.wait_for_clients_seconds)
    if there >= wanted or (now >= until and there >= rules.min_clients):
        return Draw(missing)
    if now >= until:
        waited = f"after {rules.wait_for_clients_seconds:g} s of waiting."
        detail = f"{there} of at least {rules.min_clients} clients were there {waited}"
        return Fail(NOT_ENOUGH_CLIENTS, detail + _most_frequent_reason(seen))
    return Wait(until, f"waiting_for_clients {there}/{wanted}, {_left(until, now)}")


def _collect(seen: Snapshot, rules: Rules, now: datetime) -> Step:
    target = _target(seen, rules)
    late = seen.deadline_at is not None and now >= seen.deadline_at
    if len(seen.accepted) >= target:
        return LeaveOut(seen.outliers) if seen.outliers else Aggregate()
    unchecked = _in_time(seen.jobs, seen.deadline_at)
    if unchecked:
        return Check(tuple(job.id for job in unchecked[: target - len(seen.accepted)]))
    if any(job.state in OPEN_JOB_STATES for job in seen.jobs) and not late:
        return Wait(seen.deadline_at, _collecting(seen, target, now))
    if len(seen.accepted) >= rules.min_clients:
        return LeaveOut(seen.outliers) if seen.outliers else Aggregate(missed_deadline=late)
    return _quorum_failure(seen, rules)


def _quorum_failure(seen: Snapshot, rules: Rules) -> Step:
    """Another attempt, unless those that could still be asked are too few for the quorum."""
    detail = f"{len(seen.accepted)} of at least {rules.min_clients} updates were accepted ({_lost(seen)})."
    detail += _most_frequent_reason(seen)
    if seen.remaining is not None and len(seen.accepted | seen.remaining) < rules.min_clients:
        others = len(seen.remaining - seen.accepted)
        return Fail(QUORUM_MISSED, f"{detail} Another attempt could ask {others} more clients, which is too few.")
    if seen.retries < rules.max_round_retries:
        return Retry(detail)
    return Fail(QUORUM_MISSED, f"{detail} {seen.retries + 1} attempts were made.")


def _most_frequent_reason(seen: Snapshot) -> str:
    reason = most_frequent(seen.lost)
    return "" if reason is None else f" {reason[1]} of {len(seen.asked)} clients: {reason[0]}."


def _aggregate(seen: Snapshot, rules: Rules) -> Step:
    if len(seen.accepted) < rules.min_clients:  # some were left out since
        return _quorum_failure(seen, rules)
    if seen.shards is None:
        return Aggregate()
    done, all_of_them = seen.shards
    return Join() if done == all_of_them else Wait(None, f"aggregating {done}/{all_of_them} shards")


def _evaluate(seen: Snapshot, now: datetime) -> Step:
    still_open = [job for job in seen.evaluations if job.state in OPEN_JOB_STATES]
    if not still_open or (seen.evaluation_deadline_at is not None and now >= seen.evaluation_deadline_at):
        return Close()
    done = sum(job.state == "submitted" for job in seen.evaluations)
    until = seen.evaluation_deadline_at
    return Wait(until, f"evaluating {done}/{len(seen.evaluations)}, {_left(until, now)}")


def _target(seen: Snapshot, rules: Rules) -> int:
    """How many updates close the round at once."""
    if seen.everybody:
        return max(len(seen.accepted | set(seen.cohort)), rules.min_clients)
    return rules.clients_per_round


def _in_time(jobs: Sequence[JobFacts], deadline_at: datetime | None) -> list[JobFacts]:
    """Submitted updates that count, in order of submission."""
    submitted = [
        job
        for job in jobs
        if job.state == "submitted"
        and (deadline_at is None or job.submitted_at is None or job.submitted_at <= deadline_at)
    ]
    return sorted(submitted, key=lambda job: (job.submitted_number or 0, job.ordinal))


def _collecting(seen: Snapshot, target: int, now: datetime) -> str:
    training = sum(job.state == "leased" for job in seen.jobs)
    offered = sum(job.state == "offered" for job in seen.jobs)
    lost = len(_lost_jobs(seen))
    counts = [(training, "training"), (offered, "not started"), (lost, "lost")]
    parts = [f"{count} {name}" for count, name in counts if count]
    return ", ".join([f"collecting {len(seen.accepted)}/{target}", *parts, _left(seen.deadline_at, now)])


def _lost(seen: Snapshot) -> str:
    lost = [f"client {job.ordinal}: {'left out' if job.left_out else job.state}" for job in _lost_jobs(seen)]
    silent = [f"client {job.ordinal}: no answer" for job in seen.jobs if job.state in OPEN_JOB_STATES]
    return ", ".join(lost + silent) or "nobody was asked"


def _lost_jobs(seen: Snapshot) -> list[JobFacts]:
    return [job for job in seen.jobs if job.left_out or job.state not in OPEN_JOB_STATES | {"submitted", "accepted"}]


def _left(until: datetime | None, now: datetime) -> str:
    if until is None:
        return "no deadline"
    return f"{max(0, math.ceil((until - now).total_seconds()))} s left"
