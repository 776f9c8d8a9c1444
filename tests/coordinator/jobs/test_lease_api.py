"""Leases over HTTP, as a worker agent and as people see them."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import pytest

from coordinator.db.sessions import utcnow, writing
from coordinator.jobs import service as jobs
from coordinator.models import Worker
from tests.coordinator.clients import scene
from tests.coordinator.jobs.job_rig import BOOT, DIGEST, LATER_BOOT, UPDATE, Site, refused, train_body
from tests.support.service import problem, upload


class TestLease:
    def test_without_an_offer_the_answer_is_empty(self, site: Site) -> None:
        answer = site.lease()
        assert (answer.status_code, answer.content) == (204, b"")

    def test_an_offer_made_meanwhile_ends_the_wait(self, site: Site) -> None:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(site.lease, 30)
            job_id = site.rig.offer()
            answer = waiting.result()
        assert (answer.status_code, answer.json()["job_id"]) == (200, job_id)

    def test_many_who_wait_get_one_job_each(self, site: Site) -> None:
        with writing() as session:
            session.get_one(Worker, site.worker.id).capabilities = {"algorithms": {"fedavg": 1}, "slots": 4}
        ready = threading.Barrier(5)

        def wait() -> httpx.Response:
            ready.wait()
            return site.lease(30)

        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(wait) for _ in range(4)]
            ready.wait()
            offered = [site.rig.offer(client_id=site.rig.another_client(name)) for name in "abcd"]
            leased = [future.result().json()["job_id"] for future in waiting]
        assert sorted(leased) == sorted(offered)

    def test_a_key_leases_nothing(self, site: Site) -> None:
        site.rig.offer()
        body = {"boot_id": BOOT, "wait_seconds": 0}
        problem(site.owner.owner.post("/v1/jobs/lease", json=body), 403, "worker_needed")
        problem(site.service.anonymous.post("/v1/jobs/lease", json=body), 401, "credentials_missing")
        assert site.rig.jobs() == [("offered", 1)]

    def test_another_worker_gets_nothing_of_this_one(self, site: Site) -> None:
        site.rig.offer()
        other = site.service.new_worker(site.owner, "other", scene.CAPABILITIES)
        assert other.http.post("/v1/jobs/lease", json={"boot_id": BOOT, "wait_seconds": 0}).status_code == 204

    def test_an_agent_that_another_one_replaced_leases_nothing(self, site: Site) -> None:
        site.worker.heartbeat(boot_id=LATER_BOOT).raise_for_status()
        job_id = site.rig.offer()
        problem(site.lease(boot_id=BOOT), 409, "worker_doubled")
        assert site.rig.jobs() == [("offered", 1)]
        assert site.lease(boot_id=LATER_BOOT).json()["job_id"] == job_id

    def test_a_wait_longer_than_allowed_is_refused(self, site: Site) -> None:
        refused(site.lease(31), "request_invalid", "/wait_seconds")

    def test_a_worker_that_hung_up_while_it_waited_is_given_nothing(self, site: Site) -> None:
        body = {"boot_id": BOOT, "wait_seconds": 30}
        with pytest.raises(httpx.ReadTimeout):
            site.worker.http.post("/v1/jobs/lease", json=body, timeout=0.5)
        site.rig.offer()
        assert site.lease(30).json()["attempt"] == 1


class TestLostLease:
    def test_a_lease_lost_to_a_later_life_is_neither_renewed_nor_failed_nor_declined(self, site: Site) -> None:
        job_id = site.rig.leased()
        assert site.lease(boot_id=LATER_BOOT).json()["job_id"] == job_id
        before = scene.everything()
        problem(site.call(job_id, "renew", boot_id=BOOT), 409, "lease_lost")
        reason = {"code": "crashed", "detail": "no"}
        problem(site.call(job_id, "fail", boot_id=BOOT, transient=True, **reason), 409, "lease_lost")
        problem(site.call(job_id, "decline", boot_id=BOOT, **reason), 409, "lease_lost")
        assert scene.everything() == before

    def test_an_expired_job_takes_no_result(self, site: Site) -> None:
        job_id = site.rig.leased()
        upload(site.worker.http, UPDATE, DIGEST)
        with writing() as session:
            jobs.expire_leases(session, utcnow() + timedelta(days=1))
        before = scene.everything()
        problem(site.submit(job_id), 409, "lease_lost")
        assert scene.everything() == before

    def test_a_job_offered_again_is_submitted_without_doing_it_twice(self, site: Site) -> None:
        job_id = site.rig.leased()
        with writing() as session:
            jobs.hand_back(session, job_id, BOOT, utcnow())
        upload(site.worker.http, UPDATE, DIGEST)
        assert site.submit(job_id).json()["state"] == "submitted"

    def test_a_job_that_was_never_leased_is_not_submitted(self, site: Site) -> None:
        job_id = site.rig.offer()
        upload(site.worker.http, UPDATE, DIGEST)
        before = scene.everything()
        problem(site.submit(job_id), 409, "lease_lost")
        assert scene.everything() == before


class TestShow:
    def test_its_worker_and_the_owners_see_a_job_and_nobody_else(self, site: Site) -> None:
        path = f"/v1/jobs/{site.rig.leased()}"
        stranger = site.service.new_organization("stranger")
        other = site.service.new_worker(site.owner, "other", scene.CAPABILITIES)
        seen = [key.get(path).json() for key in (site.worker.http, site.owner.viewer, site.service.admin)]
        assert [answer["state"] for answer in seen] == ["leased"] * 3
        problem(stranger.owner.get(path), 404, "job_unknown")
        problem(other.http.get(path), 404, "job_unknown")
        problem(site.service.anonymous.get(path), 401, "credentials_missing")
        problem(site.worker.http.get("/v1/jobs/job_none"), 404, "job_unknown")

    def test_the_job_of_another_worker_is_neither_renewed_nor_submitted(self, site: Site) -> None:
        job_id = site.rig.leased()
        other = site.service.new_worker(site.owner, "other", scene.CAPABILITIES)
        upload(other.http, UPDATE, DIGEST)
        before = scene.everything()
        problem(other.http.post(f"/v1/jobs/{job_id}/renew", json={"boot_id": BOOT}), 404, "job_unknown")
        problem(other.http.post(f"/v1/jobs/{job_id}/submit", json=train_body(DIGEST)), 404, "job_unknown")
        assert scene.everything() == before

    def test_a_wait_ends_with_the_next_state(self, site: Site) -> None:
        job_id = site.rig.leased()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(site.worker.http.get, f"/v1/jobs/{job_id}", params={"wait": 30})
            with writing() as session:
                jobs.withdraw_open(session, round_id=site.rig.round_id, reason="round_closed", now=utcnow())
            answer = waiting.result()
        assert (answer.json()["state"], answer.json()["problem"]["code"]) == ("withdrawn", "round_closed")
