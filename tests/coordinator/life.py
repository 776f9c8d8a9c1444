"""A life of a federation, as a machine of rules: owners, workers, clocks and lost messages, in whatever order."""

import uuid
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from coordinator.db.sessions import reading, utcnow, writing
from coordinator.models import Client, Job, Round
from coordinator.rounds import steps
from federated.payloads.payload import Payload
from tests.coordinator.life_cycles import OPEN_JOB, Watch, pass_time
from tests.support.federation_rig import Actor, FederationRig, update_of
from tests.support.service import Organization

FAIR_TURNS = 60
WORKERS = st.integers(0, 2)
VALUES = (1.0, 2.0, 4.0)
ALLOWED = {"start": {"draft"}, "pause": {"running"}, "resume": {"paused"}, "cancel": {"draft", "running", "paused"}}
DEFINITIONS = st.fixed_dictionaries(
    {
        "rounds": st.integers(1, 2),
        "clients_per_round": st.integers(1, 3),
        "min_clients": st.just(1),
        "over_selection": st.sampled_from([0, 0, 1]),
        "max_round_retries": st.integers(0, 2),
        "max_attempts": st.integers(1, 2),
        "wait_for_clients_seconds": st.just(300),
        "round_deadline_seconds": st.just(600),
        "evaluation_deadline_seconds": st.just(200),
        "evaluation": st.sampled_from([{"every": None}, {"every": 1, "who": "all"}]),
    }
)


def value_actor(rig: FederationRig, index: int, organization: Organization | None = None) -> Actor:
    """A worker whose updates are the value of this index everywhere."""

    def make_update(instruction: Payload) -> Payload:
        return update_of(VALUES[index], instruction)

    return rig.actor(organization, examples=10 * (index + 1), make_update=make_update)


def settings_of(lives: int, steps: int) -> settings:
    """Settings of so many lives; none is shortened."""
    return settings(
        max_examples=lives,
        stateful_step_count=steps,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # ids are random, so that a failure is seldom found again in a shorter life
        suppress_health_check=list(HealthCheck),
    )


class Life(RuleBasedStateMachine):
    """One federation of three clients, each on a worker of its own."""

    watch_type: type[Watch] = Watch
    fair_turns = FAIR_TURNS

    def __init__(self, rig: FederationRig, actors: list[Actor]) -> None:
        super().__init__()
        self.rig, self.actors = rig, actors
        self.leases: dict[int, dict[str, Any]] = {}
        self.answers: list[tuple[int, dict[str, Any], dict[str, Any]]] = []

    @initialize(definition=DEFINITIONS, joined=st.integers(0, 3), described=st.booleans())
    def create(self, definition: dict[str, Any], joined: int, described: bool) -> None:
        self.draft(definition)
        for of in range(len(self.actors)):
            self.beat(of)
        for actor in self.actors[:joined]:
            self.rig.join(actor)
        for actor in self.actors[joined:]:
            actor.client_id = ""
        said = {index: (VALUES[index], float(actor.examples)) for index, actor in enumerate(self.actors[:joined])}
        self.watch = self.watch_type(self.rig, said)
        if described:
            self.turn("start")
            self.rig.settle()
            for of in range(joined):
                self.describe(of)
            self.rig.settle()

    def draft(self, definition: dict[str, Any]) -> None:
        """The federation, before anybody has joined."""
        self.rig.create(**definition)

    def beat(self, of: int) -> None:
        """This worker is heard."""
        self.actors[of].worker.heartbeat().raise_for_status()

    def describe(self, of: int) -> None:
        """This worker does what it is asked first."""
        assert self.actors[of].work() == "describe"

    @invariant()
    def all_is_as_it_must_be(self) -> None:
        if self.rig.federation_id:
            self.watch.look()

    # ---- the owner

    @rule(action=st.sampled_from(["start", "pause", "resume", "pause", "resume", "cancel"]), at_once=st.booleans())
    def turn(self, action: str, at_once: bool = False) -> None:
        before = self.watch.federation
        told = {"now": "true"} if action == "pause" and at_once else {}
        answer = self.rig.owner.owner.post(self.rig.path(action), params=told)
        self.expect(answer, before in ALLOWED[action], "federation_state")

    @rule(of=WORKERS, action=st.sampled_from(["leave", "restore"]))
    def change_client(self, of: int, action: str) -> None:
        client_id = self.actors[of].client_id
        if client_id:
            with reading() as session:
                state = session.get_one(Client, client_id).state
            live = self.watch.federation in ALLOWED["cancel"]
            allowed = state != "left" if action == "leave" else state == "out" and live
            answer = self.actors[of].organization.owner.post(f"/v1/clients/{client_id}/{action}", json={})
            self.expect(answer, allowed, "illegal_transition", "federation_ended")

    # ---- the workers

    @rule(of=WORKERS)
    def lease(self, of: int) -> None:
        actor = self.actors[of]
        lease = actor.lease()
        with reading() as session:
            mine = [job for job in session.query(Job) if job.worker_id == actor.worker.id]
        held = [job for job in mine if job.state == "leased"]
        if lease is None:
            assert held or not [job.id for job in mine if job.state == "offered"], "an offer is not handed out"
        else:
            assert [(job.id, job.boot_id) for job in held] == [(lease["job_id"], actor.worker.boot_id)]
            self.leases[of] = lease

    @rule(of=WORKERS, what=st.sampled_from(["renew", "fail", "fail for good", "decline"]))
    def tell(self, of: int, what: str) -> None:
        lease, actor = self.leases.get(of), self.actors[of]
        if lease is None:
            return
        before = self.job(lease)
        body: dict[str, Any] = {"boot_id": actor.worker.boot_id}
        if what != "renew":
            body |= {"code": "broken", "detail": "It broke."}
        if what.startswith("fail"):
            body["transient"] = what == "fail"
        answer = actor.http.post(f"/v1/jobs/{lease['job_id']}/{what.partition(' ')[0]}", json=body)
        self.expect(answer, before.state == "leased" and before.boot_id == body["boot_id"], "lease_lost")

    @rule(of=WORKERS)
    def submit(self, of: int) -> None:
        lease, actor = self.leases.get(of), self.actors[of]
        if lease is not None:
            body = actor.result(lease)
            self.answers.append((of, lease, body))
            self.hand_in(of, lease, body)

    @rule(which=st.integers(0, 30))
    def submit_again(self, which: int) -> None:
        if self.answers:
            self.hand_in(*self.answers[which % len(self.answers)])

    @rule(which=st.integers(0, 30))
    def submit_otherwise(self, which: int) -> None:
        """Another result of a job that has one already."""
        found = [answer for answer in self.answers if answer[1]["kind"] == "describe"]
        if found and self.job(found[which % len(found)][1]).submission is not None:
            of, lease, body = found[which % len(found)]
            other = {"description": {**body["description"], "evaluation_examples": 99}}
            answer = self.actors[of].http.post(f"/v1/jobs/{lease['job_id']}/submit", json=other)
            self.expect(answer, False, "already_submitted")

    @rule(of=WORKERS)
    def start_anew(self, of: int) -> None:
        """The worker's process dies and comes back; it does not know what it had leased."""
        self.actors[of].worker.boot_id = uuid.uuid4().hex
        self.leases.pop(of, None)

    def hand_in(self, of: int, lease: dict[str, Any], body: dict[str, Any]) -> None:
        before = self.job(lease)
        answer = self.actors[of].http.post(f"/v1/jobs/{lease['job_id']}/submit", json=body)
        if answer.status_code == 409:
            assert before.submission is None, answer.text
            allowed = {"round_closed", "lease_lost", "client_gone", "illegal_transition"}
            assert answer.json()["code"] in allowed, answer.text
            assert not self.wanted(lease, before), answer.text
        else:
            assert answer.status_code == 200, answer.text
            if lease["kind"] == "train":
                self.watch.sent[lease["job_id"]] = lease["ordinal"]

    def wanted(self, lease: dict[str, Any], job: Job) -> bool:
        """Whether a result must be taken: its lease is held, and its round goes on."""
        with reading() as session:
            round_ = session.get(Round, job.round_id) if job.round_id else None
            client = session.get_one(Client, job.client_id)
        takes = {"describe": (), "train": ("collecting",), "evaluate": ("evaluating",)}[lease["kind"]]
        goes_on = self.watch.federation in ("running", "paused") if round_ is None else round_.state in takes
        return job.state == "leased" and goes_on and client.state in ("registered", "ready")

    def job(self, lease: dict[str, Any]) -> Job:
        with reading() as session:
            return session.get_one(Job, lease["job_id"])

    # ---- time and the background

    @rule(seconds=st.sampled_from([5, 31, 61, 91, 301, 601]), heard=st.sets(WORKERS))
    def wait(self, seconds: int, heard: set[int]) -> None:
        pass_time(seconds)
        for of in heard:
            self.beat(of)

    @rule()
    def run_tasks(self) -> None:
        self.rig.settle()

    @rule()
    def reconcile(self) -> None:
        self.rig.reconcile()

    @rule()
    def lose_messages(self) -> None:
        self.rig.drop_messages()

    @rule()
    def die_with_a_claim(self) -> None:
        """A background process claims the next step of the round, and is never heard of again."""
        rounds = self.rig.rounds()
        if rounds:
            with writing() as session:
                steps.claim(session, rounds[-1]["id"], utcnow())

    # ---- the end

    def teardown(self) -> None:
        if not self.rig.federation_id:
            return
        for turn in range(self.fair_turns):
            shown = self.watch.look()
            if shown["state"] == "paused":
                self.turn("resume")
            elif shown["state"] != "running":
                break
            self.fair_turn(seconds=151 if turn % 2 else 1)
        assert shown["state"] in ("draft", "completed", "failed", "cancelled"), shown["waiting_for"]
        assert not [job for job, state in self.watch.jobs.items() if state in OPEN_JOB]
        self.rig.federation_id = ""

    def fair_turn(self, seconds: float) -> None:
        """Everybody is there, and does what there is to do."""
        pass_time(seconds)
        for of in range(len(self.actors)):
            self.work_well(of)
        self.rig.reconcile()

    def work_well(self, of: int) -> None:
        """Whatever this worker is asked to do is done."""
        actor = self.actors[of]
        self.beat(of)
        while (lease := actor.lease()) is not None:
            self.hand_in(of, lease, actor.result(lease))

    @staticmethod
    def expect(answer: httpx.Response, allowed: bool, *codes: str) -> None:
        """Done if it is allowed; else a conflict that says why."""
        assert answer.status_code == (200 if allowed else 409), answer.text
        if not allowed:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["code"] in codes, answer.text
