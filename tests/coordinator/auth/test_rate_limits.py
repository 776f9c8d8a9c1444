"""Rate limits of keys and workers."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from coordinator.auth.rate_limits import BURST_SECONDS, Buckets
from tests.support.service import Service, forget_settings, problem, serving


@dataclass
class Clock:
    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def buckets(clock: Clock) -> Buckets:
    return Buckets(clock)


def taken(buckets: Buckets, per_second: float, name: str = "key") -> int:
    """How many tokens there are at this moment."""
    count = 0
    while buckets.take(name, per_second) == 0:
        count += 1
    return count


class TestBuckets:
    def test_a_burst_passes_and_then_the_rate(self, buckets: Buckets, clock: Clock) -> None:
        assert taken(buckets, 10) == 10 * BURST_SECONDS
        clock.seconds += 0.5
        assert taken(buckets, 10) == 5
        clock.seconds += 3600
        assert taken(buckets, 10) == 10 * BURST_SECONDS

    def test_a_refusal_says_when_there_is_a_token(self, buckets: Buckets, clock: Clock) -> None:
        taken(buckets, 4)
        wait_seconds = buckets.take("key", 4)
        assert wait_seconds == pytest.approx(0.25)
        clock.seconds += wait_seconds
        assert buckets.take("key", 4) == 0

    def test_a_rate_below_one_lets_one_pass(self, buckets: Buckets, clock: Clock) -> None:
        assert taken(buckets, 0.1) == 1
        clock.seconds += 10
        assert taken(buckets, 0.1) == 1

    def test_each_name_has_its_own(self, buckets: Buckets) -> None:
        assert taken(buckets, 1, "a") == taken(buckets, 1, "b") == 2

    def test_those_left_alone_are_forgotten(self, buckets: Buckets, clock: Clock) -> None:
        for number in range(10_000):
            buckets.take(f"old {number}", 1)
        clock.seconds += BURST_SECONDS
        buckets.take("new", 1)
        assert len(buckets) == 1


class TestService:
    @pytest.fixture
    def service(self, data_folder: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
        monkeypatch.setenv("FEDLOOM_REQUESTS_PER_SECOND", "2")
        forget_settings()
        with serving() as service:
            yield service

    def test_a_key_that_sends_too_many_is_told_to_wait(self, service: Service) -> None:
        answers = [service.admin.get("/v1/organizations") for _ in range(8)]
        assert [answer.status_code for answer in answers[:4]] == [200] * 4
        refused = [answer for answer in answers if answer.status_code != 200]
        assert refused
        for answer in refused:
            problem(answer, 429, "rate_limited")
            assert answer.headers["retry-after"] == "1"

    def test_a_kept_answer_counts_too_and_a_refusal_takes_no_key(self, service: Service) -> None:
        def ask() -> int:
            headers = {"Idempotency-Key": "k"}
            return service.admin.post("/v1/organizations", json={"name": "Bank"}, headers=headers).status_code

        found = [ask() for _ in range(8)]
        assert found[:4] == [201] * 4
        assert 429 in found

    def test_health_is_not_counted(self, service: Service) -> None:
        assert {service.anonymous.get("/healthz").status_code for _ in range(20)} == {200}

    def test_wrong_credentials_take_nothing_from_the_right_ones(self, service: Service) -> None:
        wrong = service.with_key(service.admin_key[:-1] + "x")
        for _ in range(20):
            problem(wrong.get("/v1/organizations"), 401, "key_invalid")
        assert service.admin.get("/v1/organizations").status_code == 200


def test_without_a_limit_all_pass(data_folder: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLOOM_REQUESTS_PER_SECOND", "0")
    forget_settings()
    with serving() as service:
        assert {service.admin.get("/v1/organizations").status_code for _ in range(20)} == {200}
