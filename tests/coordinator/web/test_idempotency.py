"""Idempotency keys over real HTTP: a POST with one takes effect once."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from sqlalchemy import Engine, event, select, update

from coordinator.app import create_app
from coordinator.artifacts.tasks import collect
from coordinator.auth.principals import KeyPrincipal
from coordinator.db.sessions import WriteSession, reading, utcnow, writing
from coordinator.errors import Conflict
from coordinator.models import ApiKey, IdempotencyKey, Organization, Worker
from coordinator.settings import get_settings
from coordinator.web import idempotency
from coordinator.web.idempotency import CLAIM_SECONDS, Claim, StoredResponse
from coordinator.web.routes import Route
from tests.support.service import EnrolledWorker, Identity, Service, created, problem, serving

PATH = "/v1/organizations"
REPLAYED = "idempotency-replayed"


def keyed(client: httpx.Client, path: str, key: str, body: Any = None) -> httpx.Response:
    return client.post(path, json=body, headers={"Idempotency-Key": key})


def names() -> list[str]:
    with reading() as session:
        return sorted(session.scalars(select(Organization.name)))


def kept() -> list[IdempotencyKey]:
    with reading() as session:
        return list(session.scalars(select(IdempotencyKey)))


@contextmanager
def statements() -> Iterator[list[str]]:
    """All that any thread says to the database meanwhile."""
    said: list[str] = []

    def hear(connection: object, cursor: object, text: str, *more: object) -> None:
        said.append(text)

    event.listen(Engine, "before_cursor_execute", hear)
    try:
        yield said
    finally:
        event.remove(Engine, "before_cursor_execute", hear)


class TestTheSameAgain:
    def test_it_is_done_once_and_answered_the_same(self, service: Service) -> None:
        first = keyed(service.admin, PATH, "k1", {"name": "Bank"})
        again = keyed(service.admin, PATH, "k1", {"name": "Bank"})
        assert (first.status_code, REPLAYED in first.headers) == (201, False)
        assert (again.status_code, again.content, again.headers[REPLAYED]) == (201, first.content, "true")
        assert again.headers["content-type"] == first.headers["content-type"]
        assert names() == ["Bank"]

    def test_without_a_key_it_is_done_again(self, service: Service) -> None:
        created(service.admin.post(PATH, json={"name": "Bank"}))
        problem(service.admin.post(PATH, json={"name": "Bank"}), 409, "name_taken")
        assert kept() == []

    def test_the_headers_of_the_answer_come_again(self, service: Service) -> None:
        bank = service.new_organization("Bank")
        body = {
            "name": "n", "algorithm": "fedavg", "base_model": {"id": "tiny"},
            "task": {"task": "sequence_classification", "labels": ["a", "b"]},
            "trainable": {"kind": "lora", "target_modules": ["query"]},
        }  # fmt: skip
        first = keyed(bank.owner, "/v1/federations", "k", body)
        again = keyed(bank.owner, "/v1/federations", "k", body)
        assert first.status_code == 201, first.text
        assert [again.headers[name] for name in ("location", "etag")] == [
            first.headers[name] for name in ("location", "etag")
        ]
        assert len(bank.owner.get("/v1/federations").json()["items"]) == 1

    def test_many_at_once_are_done_once(self, service: Service) -> None:
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(keyed, service.admin, PATH, "k", {"name": "Bank"}) for _ in range(8)]
        answers = [future.result() for future in asked]
        assert {answer.status_code for answer in answers} <= {201, 409}
        assert len({answer.content for answer in answers if answer.status_code == 201}) == 1
        for answer in answers:
            if answer.status_code == 409:
                problem(answer, 409, "idempotency_key_running")
        assert keyed(service.admin, PATH, "k", {"name": "Bank"}).headers[REPLAYED] == "true"
        assert names() == ["Bank"]

    def test_a_refusal_stays_one(self, service: Service) -> None:
        bank = service.new_organization("Bank")
        path = f"{PATH}/org_unknown/api-keys"
        problem(keyed(service.admin, path, "k", {"name": "n", "role": "viewer"}), 404, "not_found")
        again = keyed(service.admin, path, "k", {"name": "n", "role": "viewer"})
        problem(again, 404, "not_found")
        assert again.headers[REPLAYED] == "true"
        problem(keyed(bank.viewer, f"{PATH}/{bank.id}/api-keys", "k", {"name": "n"}), 403, "role_too_small")

    def test_a_body_that_was_not_understood_leaves_the_key_free(self, service: Service) -> None:
        problem(keyed(service.admin, PATH, "k", {"name": ""}), 422, "request_invalid")
        assert keyed(service.admin, PATH, "k", {"name": "Bank"}).status_code == 201


class TestSecrets:
    @pytest.mark.parametrize(
        ("path", "body", "field"),
        [("api-keys", {"name": "n", "role": "viewer"}, "key"), ("enrollment-tokens", {}, "token")],
    )
    def test_a_secret_is_not_shown_again(self, service: Service, path: str, body: Any, field: str) -> None:
        bank = service.new_organization("Bank")
        address = f"{PATH}/{bank.id}/{path}"
        first = keyed(bank.owner, address, "k", body)
        again = keyed(bank.owner, address, "k", body)
        told = created(first)
        assert told["secret_shown"] is False
        assert created(again) == told | {field: None, "secret_shown": True}
        assert again.headers["cache-control"] == "no-store"
        (row,) = kept()
        assert told[field].rpartition("_")[2] not in str(row.body)
        assert [item["id"] for item in bank.owner.get(address).json()["items"]].count(told["id"]) == 1


class TestAnotherRequest:
    def test_another_body_is_refused(self, service: Service) -> None:
        created(keyed(service.admin, PATH, "k", {"name": "Bank"}))
        found = problem(keyed(service.admin, PATH, "k", {"name": "Clinic"}), 422, "idempotency_key_reused")
        assert [error["pointer"] for error in found["errors"]] == ["#header/Idempotency-Key"]
        assert names() == ["Bank"]

    def test_another_address_is_refused(self, service: Service) -> None:
        bank = service.new_organization("Bank")
        created(keyed(bank.owner, f"{PATH}/{bank.id}/enrollment-tokens", "k", {"name": "n"}))
        problem(keyed(bank.owner, f"{PATH}/{bank.id}/api-keys", "k", {"name": "n"}), 422, "idempotency_key_reused")

    @pytest.mark.parametrize("key", ["", "x" * 256, "caf\u00e9", "a\tb"])
    def test_a_text_that_is_no_key_is_refused(self, service: Service, key: str) -> None:
        answer = service.admin.post(
            PATH, json={"name": "Bank"}, headers=[(b"Idempotency-Key", key.encode("latin-1"))]
        )
        problem(answer, 422, "idempotency_key_invalid")
        assert names() == []


class TestCallers:
    def test_a_key_belongs_to_its_caller(self, service: Service) -> None:
        bank, clinic = service.new_organization("Bank"), service.new_organization("Clinic")
        for organization in (bank, clinic):
            answer = keyed(organization.owner, f"{PATH}/{organization.id}/enrollment-tokens", "k", {})
            assert created(answer)["organization_id"] == organization.id
        other = service.new_key(bank.id, "owner")
        assert created(keyed(other, f"{PATH}/{bank.id}/enrollment-tokens", "k", {}))["secret_shown"] is False

    def test_whose_key_was_revoked_gets_no_answer_again(self, service: Service) -> None:
        bank = service.new_organization("Bank")
        path = f"{PATH}/{bank.id}/enrollment-tokens"
        created(keyed(bank.operator, path, "k", {}))
        with writing() as session:
            row = session.scalars(select(ApiKey).where(ApiKey.name == "operator")).one()
            row.revoked_at = utcnow()
        problem(keyed(bank.operator, path, "k", {}), 401, "key_revoked")

    def test_without_credentials_nothing_is_kept(self, service: Service) -> None:
        problem(keyed(service.anonymous, PATH, "k", {"name": "Bank"}), 401, "credentials_missing")
        problem(keyed(service.anonymous, PATH, "k", {"token": "x"}), 401, "credentials_missing")
        assert kept() == []

    @pytest.mark.parametrize(
        "token", ["x" * 20, "fle_tok_0000000000000000_" + "0" * 64, "fle__x", "fle_\x1f_0", "fle_é_0"]
    )
    def test_a_token_of_nobodys_keeps_nothing(self, service: Service, token: str) -> None:
        body = Identity().enrollment(token, "gpu")
        with statements() as said:
            for path in ("/v1/workers/enroll", PATH, "/v1/federations", "/v1/jobs/lease"):
                assert keyed(service.anonymous, path, "k", body).status_code in (401, 422)
            written = [text for text in said if text.startswith(("INSERT", "UPDATE", "DELETE"))]
            created(keyed(service.admin, PATH, "k", {"name": "Bank"}))
        assert written == []
        assert any(text.startswith("INSERT INTO idempotency_keys") for text in said)

    @pytest.mark.parametrize("body", [b"[" * 16_000, b"\xff", b"[]", b'"token"', b"7", b""])
    def test_a_body_from_nobody_that_holds_no_token_is_refused(self, service: Service, body: bytes) -> None:
        headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
        answer = service.anonymous.post("/v1/workers/enroll", content=body, headers=headers)
        assert answer.status_code in (400, 422), answer.text
        assert kept() == []

    def test_a_worker_that_enrolls_is_known_by_its_token(self, service: Service) -> None:
        bank = service.new_organization("Bank")
        token = service.new_enrollment_token(bank.id, max_uses=2)
        body = Identity().enrollment(token, "gpu")
        first = keyed(service.anonymous, "/v1/workers/enroll", "k", body)
        again = keyed(service.anonymous, "/v1/workers/enroll", "k", body)
        assert created(again) == created(first)
        problem(
            keyed(service.anonymous, "/v1/workers/enroll", "k", body | {"name": "b"}), 422, "idempotency_key_reused"
        )
        assert token not in "".join(f"{row.caller} {row.body}" for row in kept())
        with reading() as session:
            assert len(list(session.scalars(select(Worker)))) == 1


@pytest.fixture
def worker(service: Service) -> EnrolledWorker:
    return service.new_worker(service.new_organization("Bank"), "gpu")


class TestRunning:
    def test_while_it_runs_the_same_is_told_to_wait(self, worker: EnrolledWorker) -> None:
        body = {"boot_id": worker.boot_id, "wait_seconds": 3}
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(keyed, worker.http, "/v1/jobs/lease", "k", body)
            deadline = threading.Event()
            while not kept():
                assert not deadline.wait(0.01)
                assert not running.done(), running.result().text
            meanwhile = keyed(worker.http, "/v1/jobs/lease", "k", body)
            problem(meanwhile, 409, "idempotency_key_running")
            assert meanwhile.headers["retry-after"] == "1"
            assert running.result().status_code == 204
        again = keyed(worker.http, "/v1/jobs/lease", "k", body)
        assert (again.status_code, again.content, again.headers[REPLAYED]) == (204, b"", "true")


class TestClaims:
    ASKED = ("key_1", "k", "fingerprint")

    def taken(self, later_seconds: float = 0) -> Claim:
        found = idempotency.claim(*self.ASKED, utcnow() + timedelta(seconds=later_seconds))
        assert isinstance(found, Claim)
        return found

    def test_a_claim_whose_process_died_is_taken_over(self, data_folder: object) -> None:
        dead = self.taken()
        with pytest.raises(Conflict):
            self.taken(CLAIM_SECONDS - 1)
        alive = self.taken(CLAIM_SECONDS + 1)
        with pytest.raises(Conflict, match="too long"), writing() as session:
            idempotency.record(session, dead, StoredResponse(201, {}, "dead"))
        idempotency.release(dead)
        with writing() as session:
            idempotency.record(session, alive, StoredResponse(201, {}, "alive"))
        assert idempotency.claim(*self.ASKED, utcnow()) == StoredResponse(201, {}, "alive")

    def test_an_expired_answer_is_not_given_again(self, data_folder: object) -> None:
        with writing() as session:
            idempotency.record(session, self.taken(), StoredResponse(201, {}, ""))
        self.taken(get_settings().idempotency_key_seconds + 1)

    def test_expired_keys_are_deleted_by_the_collecting_task(self, data_folder: object) -> None:
        self.taken(-get_settings().idempotency_key_seconds - 1)
        idempotency.claim("key_2", "k", "fingerprint", utcnow())
        collect()
        assert [row.caller for row in kept()] == ["key_2"]


class TestTogether:
    """The change and its answer are committed together."""

    @pytest.fixture
    def service(self, data_folder: object) -> Iterator[Service]:
        router = APIRouter(route_class=Route)

        @router.post("/v1/overtaken")
        def overtaken(principal: KeyPrincipal, session: WriteSession) -> None:
            """Another run takes the key over while this one works."""
            session.add(Organization(id="org_1", name="Bank", created_at=utcnow()))
            session.execute(update(IdempotencyKey).values(claim="another run"))

        @router.post("/v1/broken")
        def broken(principal: KeyPrincipal, session: WriteSession) -> None:
            session.add(Organization(id="org_1", name="Bank", created_at=utcnow()))
            session.flush()
            raise Conflict("broken", "It does not work.")

        app = create_app()
        app.include_router(router)
        with serving(app) as service:
            yield service

    def test_a_run_that_was_overtaken_changes_nothing(self, service: Service) -> None:
        problem(keyed(service.admin, "/v1/overtaken", "k"), 409, "idempotency_key_lapsed")
        assert names() == []

    def test_a_refusal_is_kept_and_what_it_had_begun_is_not(self, service: Service) -> None:
        for _ in range(2):
            problem(keyed(service.admin, "/v1/broken", "k"), 409, "broken")
        assert names() == []
        assert [row.status for row in kept()] == [409]
