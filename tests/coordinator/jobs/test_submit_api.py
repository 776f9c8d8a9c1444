"""Results over HTTP: stored, late, or refused with the faulty field."""

from typing import Any

import httpx
import pytest

from coordinator.db.sessions import reading, utcnow, writing
from coordinator.errors import Unavailable
from coordinator.jobs import service as jobs
from coordinator.models import Client, Hold, Job, Worker
from coordinator.queue.wakeups import ADVANCE_FEDERATION, ADVANCE_ROUND
from federated.protocol import SubmitRequest
from federated.signed_statement import key_id
from tests.coordinator.clients import scene
from tests.coordinator.jobs.job_rig import DIGEST, UPDATE, Site, refused
from tests.support.queue import queued
from tests.support.service import problem, rotate, upload


class TestSubmit:
    def test_a_result_is_kept_and_its_round_woken(self, site: Site) -> None:
        job_id = site.rig.leased()
        upload(site.worker.http, UPDATE, DIGEST)
        answer = site.submit(job_id)
        assert (answer.status_code, answer.json()["state"]) == (200, "submitted")
        assert answer.json()["metrics"] == {"train_loss": 0.5}
        job = site.rig.job(job_id)
        assert (job.update_digest, job.submitted_number, job.lease_expires_at) == (DIGEST, 1, None)
        with reading() as session:
            assert session.get(Hold, (DIGEST, job_id, "update")) is not None
        assert queued(ADVANCE_ROUND) == [[site.rig.round_id]]
        assert scene.events_of(site.rig.federation_id) == ["job.submitted"]

    def test_the_same_result_again_changes_nothing(self, site: Site) -> None:
        job_id = site.rig.leased()
        upload(site.worker.http, UPDATE, DIGEST)
        first = site.submit(job_id)
        before = scene.everything()
        again = site.call(job_id, "submit", **(site.signed(job_id) | {"seconds": {"total": 9.0}}))
        assert (again.status_code, again.json()) == (200, first.json())
        assert scene.everything() == before

    def test_another_result_for_the_same_job_is_refused(self, site: Site) -> None:
        job_id = site.rig.leased()
        upload(site.worker.http, UPDATE, DIGEST)
        site.submit(job_id).raise_for_status()
        before = scene.everything()
        problem(site.submit(job_id, weight=9.0), 409, "already_submitted")
        assert scene.everything() == before

    def test_a_result_that_was_lost_as_it_came_again_is_not_kept_unchecked(self, site: Site) -> None:
        """Between the two transactions of a submission: nobody had looked at its signature."""
        job_id = site.rig.leased()
        upload(site.worker.http, UPDATE, DIGEST)
        site.submit(job_id).raise_for_status()
        again = (site.rig.worker_id, job_id, SubmitRequest.model_validate(site.signed(job_id)))
        with reading() as session:
            (checked,) = jobs.check(session, [again])
        assert isinstance(checked, jobs.CheckResult)
        with writing() as session:
            jobs.offer_again(session, session.get_one(Job, job_id), {"code": "update_lost"}, utcnow())
        with writing() as session:
            (answer,) = jobs.settle(session, [(again, checked)], utcnow())
        assert isinstance(answer, Unavailable)
        assert site.rig.job(job_id).state == "offered"
        site.submit(job_id).raise_for_status()
        assert site.rig.job(job_id).key_id is not None

    def test_the_word_of_the_round_is_not_undone_by_submitting_again(self, site: Site) -> None:
        job_id = site.rig.leased()
        upload(site.worker.http, UPDATE, DIGEST)
        site.submit(job_id).raise_for_status()
        with writing() as session:
            jobs.reject(session, session.get_one(Job, job_id), {"code": "not_finite"}, utcnow())
        answer = site.submit(job_id)
        assert (answer.status_code, answer.json()["state"]) == (200, "rejected")
        assert answer.json()["problem"] == {"code": "not_finite"}

    def test_updates_are_numbered_in_the_order_in_which_they_came(self, site: Site) -> None:
        with writing() as session:
            session.get_one(Worker, site.worker.id).capabilities = {"algorithms": {"fedavg": 1}, "slots": 2}
        first = site.rig.leased()
        second = site.rig.offer(client_id=site.rig.another_client("b"))
        assert site.lease().json()["job_id"] == second
        upload(site.worker.http, UPDATE, DIGEST)
        for job_id in (second, first):
            site.submit(job_id).raise_for_status()
        assert [site.rig.job(job_id).submitted_number for job_id in (second, first)] == [1, 2]

    def test_a_description_wakes_the_federation(self, site: Site) -> None:
        job_id = site.rig.leased("describe")
        model = {
            "model_type": "bert", "task_type": "SEQ_CLS", "tensors": [], "layers": 1, "hidden": 4, "kv_width": 4,
            "weights_digest": DIGEST,
        }  # fmt: skip
        body = {"description": {"model": model, "examples": 12, "evaluation_examples": 3, "labels": ["no", "yes"]}}
        assert site.call(job_id, "submit", **body).json()["state"] == "submitted"
        assert queued(ADVANCE_FEDERATION) == [[site.rig.federation_id]]

    @pytest.mark.parametrize("name", ["a" * 60 + "!", "(a|a)+b", "a..b", "a*", "a\x1b[31m", "é", "", "a" * 513])
    def test_names_that_are_no_plain_names_are_refused_where_they_stand(self, site: Site, name: str) -> None:
        job_id = site.rig.leased("describe")
        tensor = {"name": name, "shape": [2, 2], "dtype": "F32", "initialisation": {"kind": "zeros"}}
        model = {
            "model_type": "bert", "task_type": "SEQ_CLS", "tensors": [tensor], "seeded": [tensor],
            "target_modules": ["query", name], "modules_to_save": [name], "layers": 1, "hidden": 4, "kv_width": 4,
            "weights_digest": DIGEST,
        }  # fmt: skip
        before = scene.everything()
        body = {"description": {"model": model, "examples": 12, "evaluation_examples": 3}}
        errors = problem(site.call(job_id, "submit", **body), 422, "request_invalid")["errors"]
        places = ("tensors/0/name", "seeded/0/name", "target_modules/1", "modules_to_save/0")
        assert [error["pointer"] for error in errors] == [f"/description/model/{place}" for place in places]
        assert scene.everything() == before

    def test_an_evaluation_shows_its_metrics(self, site: Site) -> None:
        site.rig.set_round("evaluating")
        job_id = site.rig.leased("evaluate")
        answer = site.call(job_id, "submit", evaluation={"shared": {"loss": 0.4}, "own": {"loss": 0.3}})
        assert answer.json()["metrics"] == {"loss": 0.4, "own_loss": 0.3}


class TestLate:
    @pytest.mark.parametrize("state", ["aggregating", "closed", "failed", "withdrawn"])
    def test_a_late_update_is_refused_and_counted_once(self, site: Site, state: str) -> None:
        job_id = site.rig.leased()
        upload(site.worker.http, UPDATE, DIGEST)
        site.rig.set_round(state)
        for _ in range(2):
            problem(site.submit(job_id), 409, "round_closed")
        assert site.rig.round().late_updates == 1
        job = site.rig.job(job_id)
        assert (job.state, job.submission) == ("withdrawn", None)

    def test_an_update_for_a_withdrawn_job_is_late(self, site: Site) -> None:
        job_id = site.rig.leased()
        with writing() as session:
            jobs.withdraw_open(session, round_id=site.rig.round_id, reason="round_closed", now=utcnow())
        problem(site.submit(job_id), 409, "round_closed")
        assert site.rig.round().late_updates == 1

    def test_a_client_that_left_submits_nothing(self, site: Site) -> None:
        job_id = site.rig.leased()
        upload(site.worker.http, UPDATE, DIGEST)
        with writing() as session:
            session.get_one(Client, site.rig.client_id).state = "left"
        before = scene.everything()
        problem(site.submit(job_id), 409, "client_gone")
        assert scene.everything() == before


class TestSignature:
    def submitting(self, site: Site, **changes: Any) -> httpx.Response:
        """Submits what was signed and changed afterwards, and holds that a refusal changes nothing."""
        job_id = site.rig.leased()
        upload(site.worker.http, UPDATE, DIGEST)
        body = site.signed(job_id)
        before = scene.everything()
        answer = site.call(job_id, "submit", **(body | {"update": body["update"] | changes}))
        assert scene.everything() == before
        return answer

    def test_it_is_kept_with_the_key_it_holds_under(self, site: Site) -> None:
        job_id = site.rig.leased()
        upload(site.worker.http, UPDATE, DIGEST)
        site.submit(job_id).raise_for_status()
        job = site.rig.job(job_id)
        assert job.key_id == key_id(site.worker.identity.public_key)
        assert (job.submission or {})["update"]["signature"] == site.signed(job_id)["update"]["signature"]

    def test_an_update_without_one_is_refused(self, site: Site) -> None:
        document = refused(self.submitting(site, signature=None), "signature_missing", "/update/signature")
        assert "upgrade it" in document["detail"]

    @pytest.mark.parametrize(
        "changes",
        [
            {"weight": 9.0},
            {"examples": 9, "weight": 9.0},
            {"digest": scene.digest_of(b"another")},
            {"signature": "A" * 86},
            {"signature": "not base64url"},
            {"signature": "é" * 86},
            {"signature": ""},
        ],
    )
    def test_one_for_something_else_is_refused(self, site: Site, changes: dict[str, Any]) -> None:
        refused(self.submitting(site, **changes), "signature_invalid", "/update/signature")

    def test_one_for_another_job_is_refused(self, site: Site) -> None:
        signature = site.signed("job_of_yesterday")["update"]["signature"]
        refused(self.submitting(site, signature=signature), "signature_invalid", "/update/signature")

    def test_one_by_another_key_is_refused(self, site: Site) -> None:
        job_id = site.rig.leased()
        upload(site.worker.http, UPDATE, DIGEST)
        stranger = site.service.new_worker(site.owner, "other", scene.CAPABILITIES).identity
        body, own = site.signed(job_id), site.worker.identity
        site.worker.identity = stranger
        body["update"]["signature"] = site.signed(job_id)["update"]["signature"]
        site.worker.identity = own
        refused(site.call(job_id, "submit", **body), "signature_invalid", "/update/signature")

    def test_after_a_rotation_the_same_result_is_still_the_same(self, site: Site) -> None:
        job_id = site.rig.leased()
        upload(site.worker.http, UPDATE, DIGEST)
        site.submit(job_id).raise_for_status()
        rotate(site.worker)
        answer = site.submit(job_id)
        assert (answer.status_code, answer.json()["state"]) == (200, "submitted")
        assert site.rig.job(job_id).key_id != key_id(site.worker.identity.public_key)


class TestBadUpdate:
    def submitting(self, site: Site, content: bytes) -> httpx.Response:
        """Submits `content`, and holds that a refusal changes nothing."""
        job_id, digest = site.rig.leased(), scene.digest_of(content)
        upload(site.worker.http, content, digest)
        before = scene.everything()
        answer = site.submit(job_id, digest=digest)
        assert scene.everything() == before
        return answer

    def test_a_tensor_of_another_shape_is_refused_by_name(self, site: Site) -> None:
        wrong = scene.EXPECTS | {"a.lora_B.weight": {"dtype": "F32", "shape": [3, 3]}}
        document = refused(self.submitting(site, scene.safetensors(wrong)), "update_refused", "/update/digest")
        assert document["tensor"] == "a.lora_B.weight"
        assert "has shape [3, 3], expected [3, 2]" in document["detail"]

    def test_a_tensor_of_another_dtype_is_refused_by_name(self, site: Site) -> None:
        wrong = scene.EXPECTS | {"a.lora_A.weight": {"dtype": "F16", "shape": [2, 3]}}
        document = refused(self.submitting(site, scene.safetensors(wrong)), "update_refused", "/update/digest")
        assert document["tensor"] == "a.lora_A.weight"

    def test_a_missing_tensor_is_refused_by_name(self, site: Site) -> None:
        some = {"a.lora_A.weight": scene.EXPECTS["a.lora_A.weight"]}
        document = refused(self.submitting(site, scene.safetensors(some)), "update_refused", "/update/digest")
        assert (document["tensor"], "is missing" in document["detail"]) == ("a.lora_B.weight", True)

    def test_a_tensor_that_nobody_asked_for_is_refused_by_name(self, site: Site) -> None:
        more = scene.EXPECTS | {"z": {"dtype": "F32", "shape": [1]}}
        document = refused(self.submitting(site, scene.safetensors(more)), "update_refused", "/update/digest")
        assert document["tensor"] == "z"

    def test_a_truncated_file_is_refused(self, site: Site) -> None:
        document = refused(self.submitting(site, UPDATE[:-4]), "update_refused", "/update/digest")
        assert "the file holds 44" in document["detail"]

    def test_a_file_that_is_none_is_refused(self, site: Site) -> None:
        refused(self.submitting(site, b"not a tensor file"), "update_refused", "/update/digest")

    def test_an_update_that_was_not_uploaded_by_this_worker_is_refused(self, site: Site) -> None:
        job_id = site.rig.leased()
        other = site.service.new_worker(site.owner, "other", scene.CAPABILITIES)
        upload(other.http, UPDATE, DIGEST)
        before = scene.everything()
        refused(site.submit(job_id), "update_missing", "/update/digest")
        assert scene.everything() == before

    @pytest.mark.parametrize(
        ("changes", "code", "pointer"),
        [
            ({"weight": 10.5}, "weight_too_large", "/update/weight"),
            ({"weight": 0}, "request_invalid", "/update/weight"),
            ({"examples": 11}, "too_many_examples", "/update/examples"),
            ({"digest": "sha256:short"}, "request_invalid", "/update/digest"),
        ],
    )
    def test_numbers_that_do_not_go_together_are_refused_by_field(
        self, site: Site, changes: dict[str, Any], code: str, pointer: str
    ) -> None:
        job_id = site.rig.leased()
        upload(site.worker.http, UPDATE, DIGEST)
        before = scene.everything()
        refused(site.submit(job_id, **changes), code, pointer)
        assert scene.everything() == before

    def test_the_result_of_another_kind_is_refused(self, site: Site) -> None:
        job_id = site.rig.leased("describe")
        before = scene.everything()
        refused(site.submit(job_id), "submission_kind", "/description")
        assert scene.everything() == before
