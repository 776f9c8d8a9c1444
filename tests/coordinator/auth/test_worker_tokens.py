"""Worker tokens: rejected ones, and the cache of verified ones."""

import time
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.db.sessions import utcnow
from tests.support.service import Bearer, EnrolledWorker, Service, problem, rotate

SKEW_SECONDS = 60.0


@pytest.fixture
def worker(service: Service) -> EnrolledWorker:
    return service.new_worker(service.new_organization("Bank"), "gpu-1")


def ask(service: Service, token: str) -> Any:
    return service.client(Bearer(token)).get("/v1/workers/me")


class TestOnesThatAreNew:
    def test_one_it_signed_itself_is_good(self, service: Service, worker: EnrolledWorker) -> None:
        assert ask(service, worker.identity.token()).status_code == 200

    def test_an_expired_one_is_refused(self, service: Service, worker: EnrolledWorker) -> None:
        now = utcnow()
        token = worker.identity.token(iat=now - timedelta(seconds=120), exp=now - timedelta(seconds=61))
        problem(ask(service, token), 401, "token_expired")

    def test_clocks_may_differ_by_the_skew(self, service: Service, worker: EnrolledWorker) -> None:
        now = utcnow()
        for shift in (-55, 55):
            issued = now + timedelta(seconds=shift)
            token = worker.identity.token(iat=issued, exp=issued + timedelta(seconds=1))
            assert ask(service, token).status_code == 200

    def test_one_for_later_is_refused(self, service: Service, worker: EnrolledWorker) -> None:
        issued = utcnow() + timedelta(seconds=120)
        token = worker.identity.token(iat=issued, exp=issued + timedelta(seconds=60))
        problem(ask(service, token), 401, "token_invalid")

    def test_one_that_lives_too_long_is_refused(self, service: Service, worker: EnrolledWorker) -> None:
        token = worker.identity.token(exp=utcnow() + timedelta(seconds=302))
        problem(ask(service, token), 401, "token_too_long")

    def test_one_signed_by_another_key_is_refused(self, service: Service, worker: EnrolledWorker) -> None:
        token = worker.identity.token(key=Ed25519PrivateKey.generate())
        problem(ask(service, token), 401, "token_invalid")

    @pytest.mark.parametrize(
        "claims", [{"aud": "other"}, {"aud": None}, {"iss": "wkr_other"}, {"iss": None}, {"jti": None}, {"exp": None}]
    )
    def test_one_with_a_wrong_or_missing_claim_is_refused(
        self, service: Service, worker: EnrolledWorker, claims: dict[str, Any]
    ) -> None:
        problem(ask(service, worker.identity.token(**claims)), 401, "token_invalid")

    def test_one_that_names_another_worker_is_refused(self, service: Service, worker: EnrolledWorker) -> None:
        other = service.new_worker(service.new_organization("Clinic"), "gpu-1")
        problem(ask(service, worker.identity.token(kid=other.id, iss=other.id)), 401, "token_invalid")
        problem(ask(service, worker.identity.token(kid="wkr_unknown")), 401, "worker_unknown")

    def test_one_without_a_signature_is_refused(self, service: Service, worker: EnrolledWorker) -> None:
        header, claims, _ = worker.identity.token().split(".")
        problem(ask(service, f"{header}.{claims}."), 401, "token_invalid")

    def test_a_revoked_workers_is_refused(self, service: Service, worker: EnrolledWorker) -> None:
        service.admin.delete(f"/v1/workers/{worker.id}").raise_for_status()
        problem(ask(service, worker.identity.token()), 401, "worker_revoked")


class TestOnesThatWereProven:
    """Each is proven by a first request, and sent again."""

    @pytest.fixture
    def proven(self, service: Service, worker: EnrolledWorker) -> str:
        token = worker.identity.token()
        assert ask(service, token).status_code == 200
        return token

    def test_it_serves_again(self, service: Service, worker: EnrolledWorker, proven: str) -> None:
        answer = ask(service, proven)
        assert (answer.status_code, answer.json()["id"]) == (200, worker.id)

    def test_a_revoked_workers_is_refused(self, service: Service, worker: EnrolledWorker, proven: str) -> None:
        service.admin.delete(f"/v1/workers/{worker.id}").raise_for_status()
        problem(ask(service, proven), 401, "worker_revoked")

    def test_one_of_an_earlier_key_is_refused(self, service: Service, worker: EnrolledWorker, proven: str) -> None:
        rotate(worker).raise_for_status()
        problem(ask(service, proven), 401, "token_invalid")

    def test_it_expires(self, service: Service, worker: EnrolledWorker) -> None:
        now = utcnow()
        issued, expires = (now - timedelta(seconds=SKEW_SECONDS - lasts) for lasts in (0.0, 3.0))
        token = worker.identity.token(iat=issued, exp=expires)
        assert ask(service, token).status_code == 200
        time.sleep(3.5)
        problem(ask(service, token), 401, "token_expired")

    def test_another_signature_under_it_is_refused(
        self, service: Service, worker: EnrolledWorker, proven: str
    ) -> None:
        signed, _, _ = proven.rpartition(".")
        _, _, other = worker.identity.token().rpartition(".")
        problem(ask(service, f"{signed}.{other}"), 401, "token_invalid")

    def test_a_long_one_is_checked_like_any_other(self, service: Service, worker: EnrolledWorker) -> None:
        token = worker.identity.token(jti="0" * 2000)
        assert [ask(service, token).status_code for _ in range(2)] == [200, 200]
        rotate(worker).raise_for_status()
        problem(ask(service, token), 401, "token_invalid")
