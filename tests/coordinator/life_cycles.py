"""Invariants of a federation, its rounds and its jobs, and a clock that tests can advance.

The states and transitions are those of the documented life cycles. They are repeated here, so that the service's own
tables are compared with an independent copy.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import DateTime, inspect
from sqlalchemy.types import TypeDecorator

from coordinator.db.sessions import reading, writing
from coordinator.models import Client, Federation, Job, Round, Shard, Worker
from federated.payloads.payload import Payload
from tests.support.federation_rig import FederationRig

FEDERATION = {
    "draft": {"running", "cancelled"},
    "running": {"paused", "completed", "failed", "cancelled"},
    "paused": {"running", "completed", "failed", "cancelled"},
}
ROUND = {
    "waiting": {"collecting", "aggregating", "evaluating", "closed", "failed", "withdrawn"},
    "collecting": {"aggregating", "evaluating", "closed", "failed", "withdrawn"},
    "aggregating": {"evaluating", "closed", "failed", "withdrawn"},
    "evaluating": {"closed", "failed", "withdrawn"},
}
"""Federation, round: state -> those that it may be found in later. What is not named ends."""
JOB_ENDS = {"accepted", "rejected", "failed", "declined", "expired", "withdrawn"}
OPEN_JOB = {"offered", "leased", "submitted"}


def pass_time(seconds: float) -> None:
    """All that is on record happened, and all that is due falls due, so much earlier."""
    with writing() as session:
        for model in (Federation, Round, Job, Shard, Worker, Client):
            names = [column.key for column in inspect(model).columns if _is_time(column.type)]
            for row in session.query(model):
                for name in names:
                    told = getattr(row, name)
                    if told is not None:
                        setattr(row, name, told - timedelta(seconds=seconds))


def _is_time(kind: Any) -> bool:
    return isinstance(kind.impl if isinstance(kind, TypeDecorator) else kind, DateTime)


@dataclass
class Watch:
    """Looks at one federation of the rig after everything that happens, and remembers what it saw.

    `sent`: job -> ordinal, of updates that were taken with a 200. `said`: ordinal -> value and weight of every update
    that this client hands in.
    """

    rig: FederationRig
    said: Mapping[int, tuple[float, float]]
    sent: dict[str, int] = field(default_factory=dict)
    federation: str = "draft"
    rounds: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, str] = field(default_factory=dict)
    adapters: dict[int, float] = field(default_factory=dict)

    def look(self) -> dict[str, Any]:
        """The federation as the API shows it. Fails if anything is not as it must be."""
        shown, rounds = self.rig.show(), self.rig.rounds()
        with reading() as session:
            jobs = session.query(Job).filter(Job.federation_id == shown["id"]).all()
            ordinals = {row.id: row.ordinal for row in session.query(Client)}
        self._federation(shown, rounds)
        for row in rounds:
            self._round(row, [job for job in jobs if job.round_id == row["id"]], shown)
        for number in {row["number"] for row in rounds}:
            self._attempts(number, rounds, jobs, ordinals)
        for job in jobs:
            self._job(job, shown)
        return shown

    def _federation(self, shown: Mapping[str, Any], rounds: list[dict[str, Any]]) -> None:
        before, now = self.federation, shown["state"]
        assert now == before or now in FEDERATION.get(before, ()), f"from {before} to {now}"
        self.federation = now
        active = now in ("running", "paused")
        assert bool(shown["waiting_for"]) == bool(shown["waiting_since"]) == active, shown
        assert bool(shown["reason"]) == (now not in FEDERATION), shown
        assert shown["rounds_done"] == sum(row["state"] == "closed" for row in rounds)
        assert [row["state"] in ROUND for row in rounds[:-1]] == [False] * (len(rounds) - 1), "two rounds are open"
        if now not in FEDERATION:
            assert all(row["state"] not in ROUND for row in rounds)

    def _round(self, row: Mapping[str, Any], jobs: list[Job], shown: Mapping[str, Any]) -> None:
        before, now = self.rounds.get(row["id"], "waiting"), row["state"]
        assert now == before or now in ROUND.get(before, ()), f"round from {before} to {now}"
        self.rounds[row["id"]] = now
        assert bool(row["waiting_for"]) == bool(row["waiting_since"]) == (now in ROUND), row
        if now in ("failed", "withdrawn"):
            assert row["reason"], row
        if now not in ROUND:
            assert not [job.id for job in jobs if job.state in OPEN_JOB], row
        for kind in ("train", "evaluate"):
            asked = Counter(job.client_id for job in jobs if job.kind == kind)
            assert set(asked.values()) <= {1}, "a client is asked twice"
        if row["aggregated_at"] is not None:
            assert row["metrics"]["clients"] == len(row["accepted"]) >= shown["definition"]["min_clients"]
            assert len(row["accepted"]) <= shown["definition"]["clients_per_round"]

    def _attempts(self, number: int, rounds: list[dict[str, Any]], jobs: list[Job], ordinals: dict[str, int]) -> None:
        """Of one round: every accepted update counts, once, in the attempt that is aggregated."""
        attempts = [row for row in rounds if row["number"] == number]
        assert [row["attempt"] for row in attempts] == list(range(1, len(attempts) + 1))
        assert [row["state"] for row in attempts[:-1]] == ["withdrawn"] * (len(attempts) - 1)
        ids = {row["id"] for row in attempts}
        counted = [job for job in jobs if job.round_id in ids and job.kind == "train" and job.state == "accepted"]
        of = sorted(ordinals[job.client_id] for job in counted)
        assert len(set(of)) == len(of), "an update is counted twice"
        assert attempts[-1]["accepted"] == of
        for job in counted:
            assert self.sent.get(job.id) == ordinals[job.client_id], "counted, and never handed in"
        if attempts[-1]["aggregated_at"] is not None and number not in self.adapters:
            self._adapter(number, of)

    def _adapter(self, number: int, of: list[int]) -> None:
        """The factor that starts at zero is the sum of the rounds' means, of just those who are counted."""
        stored = self.stored_adapter(number)
        (factor,) = (stored[name] for name in stored if "lora_B" in name)
        assert factor.unique().numel() == 1, factor
        self.adapters[number] = self.adapters.get(number - 1, 0.0) + self.mean(of)
        assert float(factor[0, 0]) == pytest.approx(self.adapters[number], rel=1e-5)

    def stored_adapter(self, number: int) -> Payload:
        """What the owner is given after this round."""
        path = self.rig.path("rounds", str(number), "adapter", "adapter_model.safetensors")
        return Payload.decode(self.rig.owner.owner.get(path).raise_for_status().content)

    def mean(self, of: list[int]) -> float:
        """What the updates of these clients come to."""
        weights = sum(self.said[ordinal][1] for ordinal in of)
        return sum(value * weight for value, weight in map(self.said.__getitem__, of)) / weights

    def _job(self, job: Job, shown: Mapping[str, Any]) -> None:
        before = self.jobs.get(job.id)
        assert before not in JOB_ENDS or job.state == before, f"job from {before} to {job.state}"
        self.jobs[job.id] = job.state
        assert (job.state == "leased") == (job.lease_expires_at is not None), "a lease without an end"
        if job.state in ("submitted", "accepted", "rejected") or job.id in self.sent:
            assert job.submission is not None, "what was handed in is lost"
            assert job.kind != "train" or job.id in self.sent
        if shown["state"] not in FEDERATION:
            assert job.state not in OPEN_JOB, "open in a federation that ended"
        if job.state in ("failed", "declined", "expired", "withdrawn", "rejected"):
            assert job.problem is not None, "ended without a reason"
