"""Workers: enrollment, heartbeat, API responses, revocation."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from coordinator.db.sessions import reading, utcnow, writing
from coordinator.models import EnrollmentToken, Worker, WorkerKey
from coordinator.workers import service as workers
from federated.protocol import Capabilities, DatasetFacts
from federated.signed_statement import enrollment_message, key_id, rotation_message
from tests.support.service import Identity, Organization, Service, created, problem, rotate


def enroll(service: Service, token: str, name: str = "gpu-1", identity: Identity | None = None, **fields: Any) -> Any:
    body = (identity or Identity()).enrollment(token, name) | fields
    return service.anonymous.post("/v1/workers/enroll", json=body)


def uses(token: str) -> int:
    with reading() as session:
        return session.get_one(EnrollmentToken, token.removeprefix("fle_").rpartition("_")[0]).uses


def worker_count() -> int:
    with reading() as session:
        return session.query(Worker).count()


class TestEnroll:
    def test_a_token_makes_a_worker_of_its_organization(self, service: Service, bank: Organization) -> None:
        answer = created(enroll(service, service.new_enrollment_token(bank.id)))
        assert (answer["organization_id"], answer["organization_name"]) == (bank.id, "Bank")
        assert answer["worker_id"].startswith("wkr_")

    def test_a_token_serves_as_often_as_it_says(self, service: Service, bank: Organization) -> None:
        token = service.new_enrollment_token(bank.id, max_uses=2)
        created(enroll(service, token, "gpu-1"))
        created(enroll(service, token, "gpu-2"))
        problem(enroll(service, token, "gpu-3"), 401, "token_used_up")
        assert (worker_count(), uses(token)) == (2, 2)

    def test_an_expired_token_is_refused(self, service: Service, bank: Organization) -> None:
        token = service.new_enrollment_token(bank.id)
        with writing() as session:
            for row in session.query(EnrollmentToken):
                row.expires_at = utcnow() - timedelta(seconds=1)
        problem(enroll(service, token), 401, "token_expired")
        assert (worker_count(), uses(token)) == (0, 0)

    def test_a_revoked_token_is_refused(self, service: Service, bank: Organization) -> None:
        path = f"/v1/organizations/{bank.id}/enrollment-tokens"
        made = created(bank.owner.post(path, json={}))
        assert bank.owner.delete(f"{path}/{made['id']}").status_code == 204
        problem(enroll(service, made["token"]), 401, "token_revoked")
        assert worker_count() == 0

    @pytest.mark.parametrize(
        "bend", [lambda token: token[:-1] + "x", lambda token: "fle_tok_0000_00", lambda _: "flk_" * 4]
    )
    def test_an_unknown_token_is_refused(self, service: Service, bank: Organization, bend: Any) -> None:
        problem(enroll(service, bend(service.new_enrollment_token(bank.id))), 401, "token_invalid")
        assert worker_count() == 0

    def test_the_same_key_again_finds_the_same_worker_at_no_use(self, service: Service, bank: Organization) -> None:
        token, key = service.new_enrollment_token(bank.id), Identity()
        first = created(enroll(service, token, identity=key))
        second = created(enroll(service, token, identity=key))
        assert first["worker_id"] == second["worker_id"]
        assert (worker_count(), uses(token)) == (1, 1)

    def test_a_key_of_another_organizations_worker_is_refused(self, service: Service, bank: Organization) -> None:
        clinic, key = service.new_organization("Clinic"), Identity()
        created(enroll(service, service.new_enrollment_token(bank.id), identity=key))
        token = service.new_enrollment_token(clinic.id)
        problem(enroll(service, token, identity=key), 409, "public_key_taken")
        assert (worker_count(), uses(token)) == (1, 0)

    def test_a_name_is_given_once_in_an_organization(self, service: Service, bank: Organization) -> None:
        token = service.new_enrollment_token(bank.id, max_uses=5)
        created(enroll(service, token, "gpu-1"))
        problem(enroll(service, token, "gpu-1"), 409, "worker_name_taken")
        assert (worker_count(), uses(token)) == (1, 1)
        clinic = service.new_organization("Clinic")
        created(enroll(service, service.new_enrollment_token(clinic.id), "gpu-1"))

    def test_a_revoked_worker_gives_its_name_away(self, service: Service, bank: Organization) -> None:
        token = service.new_enrollment_token(bank.id, max_uses=5)
        first = created(enroll(service, token, "gpu-1"))["worker_id"]
        bank.owner.delete(f"/v1/workers/{first}").raise_for_status()
        second = created(enroll(service, token, "gpu-1"))["worker_id"]
        names = {item["id"]: item["name"] for item in bank.viewer.get("/v1/workers").json()["items"]}
        assert names == {first: f"gpu-1 ({first})", second: "gpu-1"}

    @pytest.mark.parametrize("key", ["A" * 40, "A" * 60, "é" * 43, "!" * 43])
    def test_what_is_no_ed25519_key_is_refused_by_its_pointer(
        self, service: Service, bank: Organization, key: str
    ) -> None:
        token = service.new_enrollment_token(bank.id)
        found = problem(enroll(service, token, public_key=key), 422, "public_key_invalid")
        assert found["errors"][0]["pointer"] == "/public_key"
        assert (worker_count(), uses(token)) == (0, 0)

    @pytest.mark.parametrize(
        "proof_of",
        [
            lambda key, token, name: None,
            lambda key, token, name: "",
            lambda key, token, name: "é" * 86,
            lambda key, token, name: Identity().sign(enrollment_message(token, name, key.public_key)),
            lambda key, token, name: key.sign(enrollment_message(token, "gpu-2", key.public_key)),
            lambda key, token, name: key.sign(enrollment_message(token + "0", name, key.public_key)),
            lambda key, token, name: key.sign(enrollment_message(token, name, Identity().public_key)),
            lambda key, token, name: key.sign(rotation_message(name, key.public_key)),
        ],
        ids=[
            "none",
            "empty",
            "no_base64",
            "another_key",
            "another_name",
            "another_token",
            "of_another",
            "a_rotation",
        ],
    )
    def test_a_key_that_is_not_proven_is_refused(self, service: Service, bank: Organization, proof_of: Any) -> None:
        token, key = service.new_enrollment_token(bank.id), Identity()
        found = problem(
            enroll(service, token, identity=key, proof=proof_of(key, token, "gpu-1")), 422, "proof_invalid"
        )
        assert found["errors"][0]["pointer"] == "/proof"
        assert (worker_count(), uses(token)) == (0, 0)
        created(enroll(service, token, identity=key))

    def test_a_worker_that_is_enrolled_is_told_to_nobody_without_its_key(
        self, service: Service, bank: Organization
    ) -> None:
        token, key = service.new_enrollment_token(bank.id), Identity()
        created(enroll(service, token, identity=key))
        problem(enroll(service, token, identity=key, proof=None), 422, "proof_invalid")

    def test_unknown_capabilities_are_refused_by_their_pointer(self, service: Service, bank: Organization) -> None:
        answer = enroll(service, service.new_enrollment_token(bank.id), capabilities={"slots": 0, "color": "red"})
        found = problem(answer, 422, "request_invalid")
        assert {error["pointer"] for error in found["errors"]} == {"/capabilities/slots", "/capabilities/color"}


class TestHeartbeat:
    def test_it_says_that_the_worker_is_there_and_what_it_can(self, service: Service, bank: Organization) -> None:
        worker = service.new_worker(bank, "gpu-1")
        can = Capabilities(algorithms={"fedavg": 1}, datasets=(DatasetFacts(name="tickets", task="causal_lm"),))
        before = utcnow()
        answer = worker.heartbeat(capabilities=can.model_dump(mode="json"))
        assert answer.status_code == 200
        assert answer.json()["heartbeat_seconds"] > 0
        shown = bank.viewer.get(f"/v1/workers/{worker.id}").json()
        assert Capabilities.model_validate(shown["capabilities"]) == can
        with reading() as session:
            kept = session.get_one(Worker, worker.id)
        assert kept.last_seen_at is not None
        assert kept.last_seen_at >= before
        assert kept.boot_id == worker.boot_id

    def test_what_an_earlier_version_stored_is_still_shown(self, service: Service, bank: Organization) -> None:
        worker = service.new_worker(bank, "gpu-1")
        with writing() as session:
            old = {"slots": 2, "color": "red", "datasets": [{"name": "tickets", "lines": 7}]}
            session.get_one(Worker, worker.id).capabilities = old
        shown = bank.viewer.get(f"/v1/workers/{worker.id}")
        assert shown.status_code == 200
        expected = Capabilities(slots=2, datasets=(DatasetFacts(name="tickets"),))
        assert Capabilities.model_validate(shown.json()["capabilities"]) == expected

    def test_without_capabilities_it_keeps_those_it_had(self, service: Service, bank: Organization) -> None:
        worker = service.new_worker(bank, "gpu-1", Capabilities(slots=4))
        worker.heartbeat().raise_for_status()
        assert bank.viewer.get(f"/v1/workers/{worker.id}").json()["capabilities"]["slots"] == 4

    def test_an_api_key_cannot_send_one(self, service: Service, bank: Organization) -> None:
        answer = bank.owner.post("/v1/workers/me/heartbeat", json={"boot_id": "boot-0000"})
        problem(answer, 403, "worker_needed")


class TestShow:
    def test_each_organization_sees_its_own(self, service: Service, bank: Organization) -> None:
        clinic = service.new_organization("Clinic")
        ours, theirs = service.new_worker(bank, "gpu-1"), service.new_worker(clinic, "gpu-1")
        assert [item["id"] for item in bank.viewer.get("/v1/workers").json()["items"]] == [ours.id]
        problem(bank.owner.get(f"/v1/workers/{theirs.id}"), 404, "not_found")
        assert len(service.admin.get("/v1/workers").json()["items"]) == 2

    def test_a_worker_sees_itself_alone(self, service: Service, bank: Organization) -> None:
        worker = service.new_worker(bank, "gpu-1")
        assert worker.http.get("/v1/workers/me").json()["id"] == worker.id
        problem(worker.http.get("/v1/workers"), 403, "api_key_needed")

    def test_who_was_not_heard_for_long_is_silent(self, service: Service, bank: Organization) -> None:
        worker = service.new_worker(bank, "gpu-1")
        assert bank.viewer.get(f"/v1/workers/{worker.id}").json()["state"] == "alive"
        now = utcnow()
        with reading() as session:
            assert workers.alive(session, [worker.id], now) == {worker.id}
            assert workers.alive(session, [worker.id], now + timedelta(seconds=89)) == {worker.id}
            assert workers.alive(session, [worker.id], now + timedelta(seconds=91)) == set()
            silent = workers.to_response(session.get_one(Worker, worker.id), now + timedelta(seconds=91))
        assert silent.state == "silent"


class TestRevoke:
    def test_it_holds_from_the_next_request_on(self, service: Service, bank: Organization) -> None:
        worker = service.new_worker(bank, "gpu-1")
        assert bank.operator.delete(f"/v1/workers/{worker.id}").status_code == 204
        problem(worker.heartbeat(), 401, "worker_revoked")
        assert bank.viewer.get(f"/v1/workers/{worker.id}").json()["state"] == "revoked"
        with reading() as session:
            assert workers.alive(session, [worker.id], utcnow()) == set()

    def test_a_viewer_and_another_organization_cannot(self, service: Service, bank: Organization) -> None:
        worker, clinic = service.new_worker(bank, "gpu-1"), service.new_organization("Clinic")
        problem(bank.viewer.delete(f"/v1/workers/{worker.id}"), 403, "role_too_small")
        problem(clinic.owner.delete(f"/v1/workers/{worker.id}"), 404, "not_found")
        assert worker.heartbeat().status_code == 200


class TestRotate:
    def test_the_old_key_is_worthless_from_the_next_request_on(self, service: Service, bank: Organization) -> None:
        worker = service.new_worker(bank, "gpu-1")
        old = worker.identity.private_key
        answer = rotate(worker)
        assert answer.json() == {"key_id": key_id(worker.identity.public_key)}
        assert worker.heartbeat().status_code == 200
        worker.identity.private_key = old
        problem(worker.heartbeat(), 401, "token_invalid")

    def test_every_key_and_its_time_are_kept(self, service: Service, bank: Organization) -> None:
        worker = service.new_worker(bank, "gpu-1")
        first = worker.identity.public_key
        rotate(worker)
        with reading() as session:
            rows = session.scalars(select(WorkerKey).order_by(WorkerKey.created_at)).all()
        assert [(row.id, row.public_key) for row in rows] == [
            (key_id(key), key) for key in (first, worker.identity.public_key)
        ]
        assert rows[0].retired_at == rows[1].created_at
        assert rows[1].retired_at is None

    def test_the_same_key_again_changes_nothing(self, service: Service, bank: Organization) -> None:
        worker = service.new_worker(bank, "gpu-1")
        answer = worker.http.post("/v1/workers/me/key", json=worker.identity.rotation(worker.id))
        assert answer.json() == {"key_id": key_id(worker.identity.public_key)}
        assert worker.heartbeat().status_code == 200

    def test_a_key_that_was_ever_used_is_refused(self, service: Service, bank: Organization) -> None:
        worker, other = service.new_worker(bank, "gpu-1"), service.new_worker(bank, "gpu-2")
        first = replace(worker.identity)
        rotate(worker)
        for identity in (first, other.identity):
            answer = worker.http.post("/v1/workers/me/key", json=identity.rotation(worker.id))
            problem(answer, 409, "public_key_taken")
        token = service.new_enrollment_token(bank.id)
        problem(enroll(service, token, "gpu-3", first), 409, "public_key_taken")
        assert (worker_count(), uses(token)) == (2, 0)

    def test_what_is_no_key_is_refused_by_its_pointer(self, service: Service, bank: Organization) -> None:
        worker = service.new_worker(bank, "gpu-1")
        answer = worker.http.post("/v1/workers/me/key", json={"public_key": "A" * 40})
        assert problem(answer, 422, "public_key_invalid")["errors"][0]["pointer"] == "/public_key"

    def test_a_key_that_is_not_proven_is_refused(self, service: Service, bank: Organization) -> None:
        worker, following = service.new_worker(bank, "gpu-1"), Identity()
        proofs = [
            None,
            worker.identity.sign(rotation_message(worker.id, following.public_key)),
            following.sign(rotation_message("wkr_another", following.public_key)),
        ]
        for proof in proofs:
            body = {"public_key": following.public_key, "proof": proof}
            found = problem(worker.http.post("/v1/workers/me/key", json=body), 422, "proof_invalid")
            assert found["errors"][0]["pointer"] == "/proof"
        assert worker.heartbeat().status_code == 200

    def test_a_revoked_worker_changes_no_key(self, service: Service, bank: Organization) -> None:
        worker = service.new_worker(bank, "gpu-1")
        bank.owner.delete(f"/v1/workers/{worker.id}").raise_for_status()
        body = Identity().rotation(worker.id)
        problem(worker.http.post("/v1/workers/me/key", json=body), 401, "worker_revoked")
