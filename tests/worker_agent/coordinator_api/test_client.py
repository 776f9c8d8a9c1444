"""The client against a real server on loopback."""

import time

import httpx
import jwt
import pytest

from federated.protocol import (
    EnrollRequest,
    HeartbeatRequest,
    LeaseRequest,
    RenewRequest,
)
from tests.worker_agent.faults import Fault
from tests.worker_agent.leases import SUBMISSION, make_lease
from tests.worker_agent.recording_coordinator import RecordingCoordinator
from worker_agent.coordinator_api.client import CoordinatorClient
from worker_agent.coordinator_api.connection import Clock
from worker_agent.coordinator_api.identity import Identity, public_key
from worker_agent.errors import (
    CoordinatorRefused,
    LeaseInvalid,
    LeaseLost,
    NotAuthorized,
    NotThere,
    NotUnderstood,
    RoundClosed,
    is_transient,
)

BOOT = "boot-0001"
HEARTBEAT = "POST /v1/workers/me/heartbeat"


class TestSigning:
    def test_a_token_names_the_worker_and_lives_a_minute(self, identity: Identity) -> None:
        token = identity.token(1_000_000.9)
        key = identity.key.public_key()
        claims = jwt.decode(token, key, ["EdDSA"], {"verify_exp": False}, audience="fedloom")
        claims.pop("jti")
        assert claims == {"iss": "wkr_1", "aud": "fedloom", "iat": 1_000_000, "exp": 1_000_060}
        assert jwt.get_unverified_header(token)["kid"] == "wkr_1"

    def test_no_two_tokens_are_alike(self, identity: Identity) -> None:
        assert identity.token(1_000_000) != identity.token(1_000_000)

    @pytest.mark.parametrize("offset_seconds", [-7200.0, 7200.0])
    def test_a_wrong_clock_is_set_by_the_coordinators_and_the_request_sent_anew(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator, offset_seconds: float
    ) -> None:
        coordinator.clock_offset_seconds = offset_seconds
        client.heartbeat(HeartbeatRequest(boot_id=BOOT))
        client.heartbeat(HeartbeatRequest(boot_id=BOOT))
        assert coordinator.count(HEARTBEAT) == 3
        assert client.clock.offset_seconds == pytest.approx(offset_seconds, abs=5)

    def test_another_workers_key_is_refused_without_a_second_try(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail(HEARTBEAT, Fault(401, body={"code": "worker_revoked", "detail": "Enroll it again."}))
        with pytest.raises(NotAuthorized, match="Enroll it again") as refused:
            client.heartbeat(HeartbeatRequest(boot_id=BOOT))
        assert (refused.value.code, coordinator.count(HEARTBEAT)) == ("worker_revoked", 1)

    def test_the_clock_is_never_ahead_of_the_coordinators(self) -> None:
        clock = Clock()
        clock.learn("Tue, 01 Jan 2030 00:00:00 GMT")
        assert clock.now() == pytest.approx(1_893_456_000, abs=2)
        clock.learn("nonsense")
        clock.learn(None)
        assert clock.now() == pytest.approx(1_893_456_000, abs=5)

    def test_the_key_is_not_shown(self, identity: Identity) -> None:
        assert repr(identity) == f"Identity('wkr_1' at '{identity.record.url}')"


class TestTranslation:
    def test_a_problem_document_becomes_an_error_with_status_code_and_detail(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator
    ) -> None:
        errors = [{"pointer": "/update/weight", "detail": "must be above 0"}]
        body = {"code": "bad_update", "detail": "has shape [2, 3]", "tensor": "layer.0.lora_A", "errors": errors}
        coordinator.fail("POST /v1/jobs/job_1/submit", Fault(422, {"X-Request-ID": "req_1"}, body=body))
        with pytest.raises(CoordinatorRefused) as refused:
            client.submit("job_1", SUBMISSION)
        error = refused.value
        assert "(request req_1)" in str(error)
        assert (error.status, error.code, error.tensor) == (422, "bad_update", "layer.0.lora_A")
        assert error.detail == "has shape [2, 3] (/update/weight must be above 0)"
        assert not is_transient(error)

    @pytest.mark.parametrize(
        ("status", "code", "kind"),
        [
            (409, "lease_lost", LeaseLost),
            (409, "round_closed", RoundClosed),
            (409, "other", CoordinatorRefused),
            (401, "key_invalid", NotAuthorized),
            (403, "not_yours", NotAuthorized),
            (404, "no_job", NotThere),
        ],
    )
    def test_each_refusal_has_its_kind(
        self,
        client: CoordinatorClient,
        coordinator: RecordingCoordinator,
        status: int,
        code: str,
        kind: type[CoordinatorRefused],
    ) -> None:
        coordinator.fail("POST /v1/jobs/job_1/renew", Fault(status, body={"code": code}))
        with pytest.raises(CoordinatorRefused) as refused:
            client.renew("job_1", RenewRequest(boot_id=BOOT))
        assert type(refused.value) is kind

    def test_an_error_page_of_something_between_us_is_no_answer_of_a_coordinator(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator
    ) -> None:
        """A load balancer's 404 while the coordinator restarts must not cost a finished training."""
        coordinator.fail("POST /v1/jobs/job_1/submit", Fault(404, page=True), Fault(400, page=True))
        assert client.submit("job_1", SUBMISSION).state == "submitted"
        assert coordinator.count("POST /v1/jobs/job_1/submit") == 3

    def test_an_answer_outside_the_protocol_is_not_understood(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.offers += [{"nothing": "of it"}, {"job_id": "job_1"}]
        with pytest.raises(NotUnderstood, match="POST /v1/jobs/lease is no"):
            client.lease(LeaseRequest(boot_id=BOOT, wait_seconds=0))
        with pytest.raises(LeaseInvalid, match="the lease cannot be read: kind: missing") as unread:
            client.lease(LeaseRequest(boot_id=BOOT, wait_seconds=0))
        assert unread.value.job_id == "job_1"

    def test_an_id_that_leaves_its_path_is_not_used(self, client: CoordinatorClient) -> None:
        with pytest.raises(NotUnderstood, match="cannot name a file"):
            client.show("../workers/me")


class TestCalls:
    def test_enrollment_goes_without_a_signature(
        self, http: httpx.Client, identity: Identity, coordinator: RecordingCoordinator
    ) -> None:
        request = EnrollRequest(token="fle_0123456789", name="node", public_key=public_key(identity.key))
        assert CoordinatorClient(http, None).enroll(request).worker_id == "wkr_1"
        assert coordinator.body_of("POST /v1/workers/enroll")["public_key"] == public_key(identity.key)

    def test_enrollment_whose_answer_was_lost_is_asked_for_again_under_the_same_key_in_any_process(
        self, http: httpx.Client, identity: Identity, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail("POST /v1/workers/enroll", Fault(lose_answer=True))
        request = EnrollRequest(token="fle_0123456789", name="node", public_key=public_key(identity.key))
        for _ in range(2):
            assert CoordinatorClient(http, None).enroll(request).worker_id == "wkr_1"
        keys = coordinator.keys_of("POST /v1/workers/enroll")
        assert (len(keys), len(set(keys))) == (3, 1)
        other = EnrollRequest(token="fle_0123456789", name="another", public_key=public_key(identity.key))
        CoordinatorClient(http, None).enroll(other)
        assert len(set(coordinator.keys_of("POST /v1/workers/enroll"))) == 2

    def test_no_offer_is_none_and_an_offer_is_a_lease(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator
    ) -> None:
        request = LeaseRequest(boot_id=BOOT, wait_seconds=0)
        assert client.lease(request) is None
        lease = make_lease()
        coordinator.offers.append(lease.model_dump(mode="json"))
        assert client.lease(request) == lease

    def test_a_job_is_shown(self, client: CoordinatorClient, coordinator: RecordingCoordinator) -> None:
        coordinator.job_state = "accepted"
        assert client.show("job_1", wait_seconds=1).state == "accepted"

    def test_the_time_told_is_the_servers(self, client: CoordinatorClient) -> None:
        client.heartbeat(HeartbeatRequest(boot_id=BOOT))
        assert client.clock.now() == pytest.approx(time.time(), abs=3)
