"""The client against a real server on loopback."""

import socket
import threading
import time

import httpx
import jwt
import pytest
from tenacity import Future, RetryCallState, Retrying

from federated.protocol import (
    Description,
    EnrollRequest,
    FailRequest,
    HeartbeatRequest,
    LeaseRequest,
    RenewRequest,
    SubmitRequest,
)
from federated.trainable import ModelFacts
from tests.worker_agent.leases import make_lease
from tests.worker_agent.recording_coordinator import Fault, RecordingCoordinator
from worker_agent.connection import Clock, open_http, wait_as_asked
from worker_agent.coordinator_client import CoordinatorClient
from worker_agent.errors import (
    CoordinatorAway,
    CoordinatorRefused,
    LeaseLost,
    NotAuthorised,
    NotThere,
    NotUnderstood,
    RoundClosed,
    is_transient,
)
from worker_agent.identity import Identity, public_key
from worker_agent.settings import AgentSettings

BOOT = "boot-0001"
HEARTBEAT = "POST /v1/workers/me/heartbeat"
FACTS = ModelFacts(
    model_type="bert",
    task_type="SEQ_CLS",
    tensors=(),
    layers=1,
    hidden=8,
    kv_width=8,
    weights_digest="sha256:" + "0" * 64,
)
SUBMISSION = SubmitRequest(description=Description(model=FACTS, examples=5, evaluation_examples=1))


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
        coordinator.fail(HEARTBEAT, Fault(401, body={"code": "worker_revoked", "detail": "Enrol it again."}))
        with pytest.raises(NotAuthorised, match="Enrol it again") as refused:
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


class TestTryingAgain:
    def test_a_heartbeat_is_sent_again_after_a_failure_of_the_server(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail(HEARTBEAT, Fault(503), Fault(lose_answer=True))
        assert client.heartbeat(HeartbeatRequest(boot_id=BOOT)).heartbeat_seconds == 0.2
        assert coordinator.count(HEARTBEAT) == 3

    def test_a_submission_whose_answer_was_lost_is_sent_again(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail("POST /v1/jobs/job_1/submit", Fault(lose_answer=True))
        assert client.submit("job_1", SUBMISSION).state == "submitted"
        assert coordinator.count("POST /v1/jobs/job_1/submit") == 2

    def test_a_lease_whose_answer_was_lost_is_not_asked_for_again(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail("POST /v1/jobs/lease", Fault(lose_answer=True))
        with pytest.raises(CoordinatorAway):
            client.lease(LeaseRequest(boot_id=BOOT, wait_seconds=0))
        assert coordinator.count("POST /v1/jobs/lease") == 1

    def test_what_never_arrived_is_sent_again_whatever_it_is(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.fail("POST /v1/jobs/job_1/fail", Fault(429, headers={"Retry-After": "0"}))
        client.fail("job_1", FailRequest(boot_id=BOOT, code="out_of_memory", detail="", transient=True))
        assert coordinator.count("POST /v1/jobs/job_1/fail") == 2

    def test_an_agent_that_stops_does_not_try_again(
        self, http: httpx.Client, identity: Identity, coordinator: RecordingCoordinator
    ) -> None:
        stopping = threading.Event()
        stopping.set()
        coordinator.fail(HEARTBEAT, Fault(503))
        with pytest.raises(CoordinatorAway):
            CoordinatorClient(http, identity, stopping).heartbeat(HeartbeatRequest(boot_id=BOOT))
        assert coordinator.count(HEARTBEAT) == 1

    def test_a_host_without_a_coordinator_is_away(self, settings: AgentSettings) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            stopping = threading.Event()
            stopping.set()
            with open_http(settings, f"http://127.0.0.1:{taken.getsockname()[1]}") as http:
                with pytest.raises(CoordinatorAway, match="cannot reach") as away:
                    CoordinatorClient(http, None, stopping).probe()
        assert away.value.never_sent
        assert is_transient(away.value)

    def test_the_pause_is_never_shorter_than_the_coordinator_asked(self) -> None:
        state = RetryCallState(Retrying(), None, (), {})
        state.outcome = Future(1)
        state.outcome.set_exception(CoordinatorAway("busy", retry_after_seconds=7.0))
        assert wait_as_asked(0.1, 1.0)(state) == 7.0


class TestTranslation:
    def test_a_problem_document_becomes_an_error_with_status_code_and_detail(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator
    ) -> None:
        errors = [{"pointer": "/update/weight", "detail": "must be above 0"}]
        body = {"code": "bad_update", "detail": "has shape [2, 3]", "tensor": "layer.0.lora_A", "errors": errors}
        coordinator.fail("POST /v1/jobs/job_1/submit", Fault(422, body=body))
        with pytest.raises(CoordinatorRefused) as refused:
            client.submit("job_1", SUBMISSION)
        error = refused.value
        assert (error.status, error.code, error.tensor) == (422, "bad_update", "layer.0.lora_A")
        assert error.detail == "has shape [2, 3] (/update/weight must be above 0)"
        assert not is_transient(error)

    @pytest.mark.parametrize(
        ("status", "code", "kind"),
        [
            (409, "lease_lost", LeaseLost),
            (409, "round_closed", RoundClosed),
            (409, "other", CoordinatorRefused),
            (401, "key_invalid", NotAuthorised),
            (403, "not_yours", NotAuthorised),
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

    def test_an_answer_outside_the_protocol_is_not_understood(
        self, client: CoordinatorClient, coordinator: RecordingCoordinator
    ) -> None:
        coordinator.offers.append({"job_id": "job_1"})
        with pytest.raises(NotUnderstood, match="POST /v1/jobs/lease is no Lease"):
            client.lease(LeaseRequest(boot_id=BOOT, wait_seconds=0))

    def test_an_id_that_leaves_its_path_is_not_used(self, client: CoordinatorClient) -> None:
        with pytest.raises(NotUnderstood, match="cannot name a file"):
            client.show("../workers/me")


class TestCalls:
    def test_enrolment_goes_without_a_signature(
        self, http: httpx.Client, identity: Identity, coordinator: RecordingCoordinator
    ) -> None:
        request = EnrollRequest(token="fle_0123456789", name="node", public_key=public_key(identity.key))
        assert CoordinatorClient(http, None).enroll(request).worker_id == "wkr_1"
        assert coordinator.body_of("POST /v1/workers/enroll")["public_key"] == public_key(identity.key)

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
