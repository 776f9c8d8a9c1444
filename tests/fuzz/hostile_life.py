"""A life in which the last of three workers is hostile: what it hands in is whatever hypothesis makes of a result."""

import json
from typing import Any

import httpx
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from schemathesis import GenerationMode

from coordinator.db.sessions import reading
from coordinator.models import Job
from tests.coordinator.contract.asking import OPERATIONS
from tests.coordinator.contract.cases import FUZZED, faults, impatient
from tests.coordinator.contract.hostile import judged
from tests.coordinator.life import DEFINITIONS, Life
from tests.fuzz.hostile_watch import MALLORY, HostileWatch
from tests.fuzz.payloads import FLOATS, almost, wrong_values
from tests.fuzz.scene import Scene
from tests.fuzz.values import changed
from tests.support.federation_rig import CAPABILITIES, update_of
from tests.support.service import accept, created, upload
from tests.worker_agent.running_agent import digest_of

HONEST = st.integers(0, 1)
MOODS = ("silent", "well", "badly")
"""What the hostile worker does once the weather is fair."""
CRASHES = ("step_died", "step_overran")
OPERATION = {operation.id: operation for operation in OPERATIONS}
CALLS = (
    "lease_job", "renew_job", "submit_job", "fail_job", "decline_job", "show_job", "announce_upload", "show_upload",
    "put_chunk", "complete_upload", "download_artifact", "send_heartbeat", "show_own_worker",
)  # fmt: skip
OFTEN = st.sampled_from([True, True, True, False])
NUMBERS = st.sampled_from([1.0, 5e-324, 1e-300, 0.1, 2.0**53, 1e6]) | st.floats(
    min_value=0, max_value=2.0**53, exclude_min=True
)


class HostileLife(Life):
    """As a life of three honest workers, but for the last one, which does and sends what it likes."""

    watch_type = HostileWatch
    fair_turns = 120

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene.rig, scene.actors)
        self.scene, self.mallory = scene, scene.actors[MALLORY]
        self.mood, self.describes, self.value = "silent", False, 0.0
        self.asked, self.changes = False, 0

    @initialize(
        definition=DEFINITIONS,
        described=OFTEN,
        describes=OFTEN,
        mood=st.sampled_from(MOODS),
        value=st.sampled_from(FLOATS),
    )
    def create(self, definition: dict[str, Any], described: bool, describes: bool, mood: str, value: float) -> None:
        self.scene.begin()
        self.mood, self.describes, self.value = mood, describes, value
        super().create(definition, len(self.actors), described)
        honest = self.actors[:MALLORY]
        assert isinstance(self.watch, HostileWatch)
        self.watch.honest = {actor.client_id for actor in honest}
        self.scene.hide(*self.watch.honest, *(actor.worker.id for actor in honest))

    def draft(self, definition: dict[str, Any]) -> None:
        super().draft(definition)
        organization = self.mallory.organization
        invitations = self.rig.path("invitations")
        created(self.rig.owner.owner.post(invitations, json={"organization_id": organization.id}))
        accept(organization.owner, self.rig.federation_id).raise_for_status()

    def beat(self, of: int) -> None:
        if of == MALLORY:  # it may have been replaced by another of its own
            self.ask("send_heartbeat", json={"boot_id": self.mallory.worker.boot_id})
        else:
            super().beat(of)

    def describe(self, of: int) -> None:
        if of != MALLORY:
            super().describe(of)
        elif self.describes:
            self.work_like_others()

    @invariant()
    def all_is_as_it_must_be(self) -> None:
        """Not looked at after a rule in which the hostile worker was refused whatever it asked."""
        before, self.changes = self.changes, self.scene.changes
        asked, self.asked = self.asked, False
        if not asked or before != self.changes:
            super().all_is_as_it_must_be()

    # ---- the owner and the honest, as ever

    @rule(action=st.sampled_from(["start", "pause", "resume", "resume", "start", "cancel", "resume"]))
    def turn(self, action: str, at_once: bool = False) -> None:
        super().turn(action, at_once)

    @rule(of=HONEST)
    def lease(self, of: int) -> None:
        super().lease(of)
        if of in self.leases:
            self.scene.hide(self.leases[of]["job_id"])

    @rule(of=HONEST, what=st.sampled_from(["renew", "fail", "fail for good", "decline"]))
    def tell(self, of: int, what: str) -> None:
        super().tell(of, what)

    @rule(of=HONEST)
    def submit(self, of: int) -> None:
        super().submit(of)

    @rule(of=HONEST)
    def start_anew(self, of: int) -> None:
        super().start_anew(of)

    # ---- the hostile

    @rule()
    def lease_more(self) -> None:
        """The hostile worker asks for a job."""
        answer = self.ask("lease_job", json={"boot_id": self.mallory.worker.boot_id, "wait_seconds": 0})
        if answer.status_code == 200:
            self.leases[MALLORY] = answer.json()

    @rule()
    def work_like_others(self) -> None:
        """A job is done well."""
        self.lease_more()
        lease = self.leases.get(MALLORY)
        if lease is not None and self.reads(lease):
            self.offer(lease, json.dumps(self.mallory.result(lease)))

    @rule(data=st.data(), times=st.integers(3, 8))
    def hand_in_anything(self, data: st.DataObject, times: int) -> None:
        """Results of its own job with something wrong; what is refused leaves room for another."""
        if MALLORY not in self.leases:
            self.lease_more()
        lease = self.leases.get(MALLORY)
        if lease is None or not self.reads(lease):
            return
        for _ in range(times):
            result = self.wrong_result(data, lease)
            self.offer(lease, data.draw(st.just(json.dumps(result)) | changed(result)))

    @rule(data=st.data())
    def hand_in_wrong_values(self, data: st.DataObject) -> None:
        """An update of the right form, whose wrong is found late or never."""
        self.lease_more()
        lease = self.leases.get(MALLORY)
        if lease is not None and lease["kind"] == "train" and self.reads(lease):
            content = data.draw(wrong_values(self.good_update(lease)))
            self.offer(lease, json.dumps(self.signed(lease, content, data.draw(NUMBERS), 1)))

    @rule(data=st.data(), of=HONEST)
    def hand_in_for_another(self, data: st.DataObject, of: int) -> None:
        """Nothing is taken of what another is to do."""
        lease = self.leases.get(of)
        if lease is not None:
            result = self.forged(lease)
            assert not self.offer(lease, data.draw(st.just(json.dumps(result)) | changed(result))).is_success

    @rule(data=st.data())
    def upload_anything(self, data: st.DataObject) -> None:
        """Other bytes than were announced, more of them or fewer, at any place."""
        content = data.draw(st.binary(min_size=1, max_size=300))
        sizes = st.sampled_from([len(content), len(content), len(content) + 1, 1, 0, -1, 2**40, 10**18])
        digest = data.draw(st.sampled_from([digest_of(content), digest_of(b"another")]))
        answer = self.ask("announce_upload", json={"size_bytes": data.draw(sizes), "digest": digest})
        if answer.status_code == 201:
            ids = {"upload_id": answer.json()["upload_id"], "index": str(data.draw(st.integers(-1, 3)))}
            self.ask("put_chunk", ids, content=content[data.draw(st.integers(0, 3)) :])
            self.ask("complete_upload", ids)
            self.ask("show_upload", ids)

    @rule(data=st.data())
    def beat_anyhow(self, data: st.DataObject) -> None:
        """Abilities that no worker has."""
        good = {"boot_id": self.mallory.worker.boot_id, "capabilities": CAPABILITIES.model_dump(mode="json")}
        self.send_text("send_heartbeat", {}, data.draw(changed(good)))

    @rule(of=HONEST, what=st.sampled_from(["show_job", "renew_job", "fail_job", "decline_job"]))
    def meddle(self, of: int, what: str) -> None:
        """Another's job is none of its business."""
        lease = self.leases.get(of)
        if lease is not None:
            body = {"boot_id": self.actors[of].worker.boot_id, "code": "broken", "transient": False}
            fields = {"renew_job": ("boot_id",), "decline_job": ("boot_id", "code")}.get(what, tuple(body))
            request = {} if what == "show_job" else {"json": {name: body[name] for name in fields}}
            assert self.ask(what, {"job_id": lease["job_id"]}, **request).status_code == 404

    @rule()
    def read_others_updates(self) -> None:
        """Nor are the updates of others."""
        with reading() as session:
            own = {job.update_digest for job in session.query(Job) if job.worker_id == self.mallory.worker.id}
            all_ = {job.update_digest for job in session.query(Job) if job.update_digest}
        for digest in sorted(all_ - own):
            assert self.ask("download_artifact", {"digest": digest}).status_code == 404

    @rule(data=st.data(), call=st.sampled_from(CALLS), mode=st.sampled_from(list(GenerationMode)))
    def send_anything(self, data: st.DataObject, call: str, mode: GenerationMode) -> None:
        """Any call of a worker, for its own job if that takes one."""
        lease = self.leases.get(MALLORY)
        own = {"job_id": lease["job_id"]} if lease is not None and "job_id" in OPERATION[call].names("path") else None
        case = impatient(data.draw(FUZZED[call].as_strategy(mode, path_parameters=own)))
        self.asked, answer = True, self.scene.call(case)
        self.scene.judge(call, answer, faults(case, answer, mode))

    # ---- what it sends

    def wrong_result(self, data: st.DataObject, lease: dict[str, Any]) -> dict[str, Any]:
        """A result of its own job whose update, if there is one, is almost right."""
        if lease["kind"] != "train":
            return self.mallory.result(lease)
        content = data.draw(almost(self.good_update(lease)))
        return self.signed(lease, content, data.draw(NUMBERS), data.draw(st.integers(1, 2**31)))

    def good_update(self, lease: dict[str, Any]) -> bytes:
        """What it would hand in if it were honest."""
        return self.mallory.make_update(self.mallory.instruction(lease)).encode()

    def signed(self, lease: dict[str, Any], content: bytes, weight: float, examples: int) -> dict[str, Any]:
        """An update of these bytes, which are uploaded."""
        upload(self.mallory.http, content, digest_of(content))
        return {"update": self.mallory.signed(lease, digest_of(content), weight, examples)}

    def forged(self, lease: dict[str, Any]) -> dict[str, Any]:
        """An update that nobody uploaded."""
        return {"update": self.mallory.signed(lease, digest_of(b"nothing"), 1.0, 1)}

    def reads(self, lease: dict[str, Any]) -> bool:
        """Whether it may have the instruction, if there is one."""
        instruction = lease["instruction"]
        return instruction is None or self.ask("download_artifact", instruction).status_code == 200

    def offer(self, lease: dict[str, Any], text: str) -> httpx.Response:
        """Hands in whatever this says."""
        answer = self.send_text("submit_job", {"job_id": lease["job_id"]}, text)
        if answer.is_success and lease["kind"] == "train":
            self.watch.sent[lease["job_id"]] = lease["ordinal"]
        return answer

    def send_text(self, call: str, ids: dict[str, str], text: str) -> httpx.Response:
        content = text.encode(errors="surrogatepass")
        return self.ask(call, ids, content=content, headers={"Content-Type": "application/json"})

    def ask(self, call: str, ids: dict[str, str] | None = None, **request: Any) -> httpx.Response:
        """The answer to the hostile worker, judged."""
        self.asked, operation = True, OPERATION[call]
        answer = self.mallory.http.request(operation.method, operation.path.format_map(ids or {}), **request)
        self.scene.judge(call, answer, judged(operation, answer))
        return answer

    # ---- the end

    def work_well(self, of: int) -> None:
        """The honest do; the hostile one is silent, does well, or hands in what nobody can use."""
        if of != MALLORY:
            super().work_well(of)
            return
        if self.mood == "silent":
            return
        self.beat(of)
        self.lease_more()
        lease = self.leases.pop(of, None)
        if lease is not None and self.reads(lease):
            good = self.mood == "well" or lease["kind"] != "train"
            self.offer(lease, json.dumps(self.mallory.result(lease) if good else self.bad_update(lease)))

    def bad_update(self, lease: dict[str, Any]) -> dict[str, Any]:
        """Of one value everywhere, which is not a good one."""
        content = update_of(self.value, self.mallory.instruction(lease)).encode()
        return self.signed(lease, content, 1.0, 1)

    def teardown(self) -> None:
        self.scene.end(lambda: self.watch.federation, self.finish)

    def finish(self) -> None:
        """The weather turns fair; what ends then, ends for a reason that is no mistake of the coordinator's."""
        path = self.rig.path()
        super().teardown()
        with reading() as session:
            states = [job.state for job in session.query(Job) if job.worker_id == self.mallory.worker.id]
        self.scene.turn.record.jobs.update(states)
        shown = self.rig.owner.owner.get(path).json()
        self.scene.ended(shown["state"])
        assert shown["reason"] not in CRASHES, shown
        assert "coordinator's log" not in str(shown["reason_detail"]), shown
