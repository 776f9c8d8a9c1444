"""Organizations, API keys and enrollment tokens over HTTP."""

from datetime import datetime, timedelta

import httpx
import pytest

from coordinator.db.sessions import reading, utcnow, writing
from coordinator.models import ApiKey, EnrollmentToken, Organization
from coordinator.organizations import service as organizations
from tests.support.audit_log import chain_of
from tests.support.service import Service, created, problem


def rows(model: type) -> int:
    with reading() as session:
        return session.query(model).count()


class TestOrganizations:
    def test_an_admin_makes_one_and_its_owner_sees_it(self, service: Service) -> None:
        bank = service.new_organization("Bank")
        answer = bank.owner.get(f"/v1/organizations/{bank.id}")
        assert answer.status_code == 200
        assert answer.json()["name"] == "Bank"
        assert bank.id.startswith("org_")

    def test_a_name_is_given_once(self, service: Service) -> None:
        service.new_organization("Bank")
        problem(service.admin.post("/v1/organizations", json={"name": "Bank"}), 409, "name_taken")
        assert rows(Organization) == 1

    def test_only_an_admin_makes_one(self, service: Service) -> None:
        bank = service.new_organization("Bank")
        problem(bank.owner.post("/v1/organizations", json={"name": "Other"}), 403, "role_too_small")
        assert rows(Organization) == 1

    def test_another_organization_is_not_there(self, service: Service) -> None:
        bank, clinic = service.new_organization("Bank"), service.new_organization("Clinic")
        problem(bank.owner.get(f"/v1/organizations/{clinic.id}"), 404, "not_found")
        listed = bank.owner.get("/v1/organizations").json()["items"]
        assert [item["id"] for item in listed] == [bank.id]

    def test_an_unknown_field_is_refused_by_its_pointer(self, service: Service) -> None:
        found = problem(
            service.admin.post("/v1/organizations", json={"name": "Bank", "color": "red"}), 422, "request_invalid"
        )
        assert [error["pointer"] for error in found["errors"]] == ["/color"]
        assert rows(Organization) == 0

    @pytest.mark.parametrize("name", ["", " Bank", "B" * 129, "Bank\n", None, 7])
    def test_a_bad_name_is_refused_by_its_pointer(self, service: Service, name: object) -> None:
        found = problem(service.admin.post("/v1/organizations", json={"name": name}), 422, "request_invalid")
        assert [error["pointer"] for error in found["errors"]] == ["/name"]
        assert rows(Organization) == 0

    def test_a_body_that_is_no_json_is_refused(self, service: Service) -> None:
        answer = service.admin.post("/v1/organizations", content=b"{", headers={"Content-Type": "application/json"})
        problem(answer, 422, "request_invalid")


class TestPages:
    def test_following_next_shows_every_organization_once(self, service: Service) -> None:
        made = {service.new_organization(f"Organization {n}").id for n in range(5)}
        path, seen = "/v1/organizations?limit=2", []
        while path:
            answer = service.admin.get(path)
            seen += [item["id"] for item in answer.json()["items"]]
            path = answer.links.get("next", {}).get("url", "")
            assert bool(path) == (answer.json()["next_cursor"] is not None)
        assert len(seen) == 5
        assert set(seen) == made

    def test_a_made_up_cursor_is_refused(self, service: Service) -> None:
        problem(service.admin.get("/v1/organizations?cursor=%C3%A9%C3%A9%C3%A9"), 400, "cursor_invalid")

    @pytest.mark.parametrize("limit", ["0", "201", "many"])
    def test_a_limit_out_of_bounds_is_refused(self, service: Service, limit: str) -> None:
        found = problem(service.admin.get(f"/v1/organizations?limit={limit}"), 422, "request_invalid")
        assert found["errors"][0]["pointer"] == "#query/limit"


class TestApiKeys:
    def test_the_text_is_shown_once_and_kept_as_a_hash(self, service: Service) -> None:
        bank = service.new_organization("Bank")
        answer = bank.owner.post(f"/v1/organizations/{bank.id}/api-keys", json={"name": "ci", "role": "viewer"})
        text = created(answer)["key"]
        assert answer.headers["cache-control"] == "no-store"
        assert service.with_key(text).get("/v1/organizations").status_code == 200
        with reading() as session:
            kept = session.get_one(ApiKey, answer.json()["id"])
        assert text.rpartition("_")[2] not in str(vars(kept))
        assert "flk_" not in bank.owner.get(f"/v1/organizations/{bank.id}/api-keys").text

    def test_a_revoked_key_is_refused_from_the_next_request_on(self, service: Service) -> None:
        bank = service.new_organization("Bank")
        path = f"/v1/organizations/{bank.id}/api-keys"
        made = created(bank.owner.post(path, json={"name": "ci"}))
        key = service.with_key(made["key"])
        assert key.get("/v1/organizations").status_code == 200
        assert bank.owner.delete(f"{path}/{made['id']}").status_code == 204
        problem(key.get("/v1/organizations"), 401, "key_revoked")
        assert bank.owner.delete(f"{path}/{made['id']}").status_code == 204

    def test_a_key_that_expires_is_refused_from_then_on(self, service: Service) -> None:
        bank = service.new_organization("Bank")
        path, ends = f"/v1/organizations/{bank.id}/api-keys", utcnow() + timedelta(days=30)
        made = created(bank.owner.post(path, json={"name": "ci", "expires_at": ends.isoformat()}))
        assert datetime.fromisoformat(made["expires_at"]) == ends
        assert [item["expires_at"] for item in bank.owner.get(path).json()["items"]].count(made["expires_at"]) == 1
        (entry,) = [entry for entry in chain_of(service, bank.id) if entry["target"] == made["id"]]
        assert datetime.fromisoformat(entry["details"]["expires_at"]) == ends
        key = service.with_key(made["key"])
        assert key.get("/v1/organizations").status_code == 200
        with writing() as session:
            session.get_one(ApiKey, made["id"]).expires_at = utcnow()
        problem(key.get("/v1/organizations"), 401, "key_expired")

    @pytest.mark.parametrize(
        "when", ["2020-01-01T00:00:00Z", "9999-01-01T00:00:00Z", "2036-01-01T00:00:00", 1893456000, "tomorrow"]
    )
    def test_a_key_ends_in_the_future_and_within_ten_years(self, service: Service, when: object) -> None:
        bank = service.new_organization("Bank")
        before = rows(ApiKey)
        answer = bank.owner.post(f"/v1/organizations/{bank.id}/api-keys", json={"name": "ci", "expires_at": when})
        assert answer.json()["code"] in ("expires_at_invalid", "request_invalid")
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/expires_at")
        assert rows(ApiKey) == before

    def test_an_admins_key_may_expire_too(self, service: Service) -> None:
        with writing() as session:
            text = organizations.create_admin_key(session, "for today", utcnow() - timedelta(days=2), days=1)
        problem(service.with_key(text).get("/v1/organizations"), 401, "key_expired")

    @pytest.mark.parametrize("role", ["operator", "viewer"])
    def test_only_an_owner_makes_and_lists_keys(self, service: Service, role: str) -> None:
        bank = service.new_organization("Bank")
        key: httpx.Client = getattr(bank, role)
        before = rows(ApiKey)
        path = f"/v1/organizations/{bank.id}/api-keys"
        problem(key.post(path, json={"name": "more", "role": "owner"}), 403, "role_too_small")
        problem(key.get(path), 403, "role_too_small")
        assert rows(ApiKey) == before

    def test_nobody_makes_a_key_of_another_organization(self, service: Service) -> None:
        bank, clinic = service.new_organization("Bank"), service.new_organization("Clinic")
        before = rows(ApiKey)
        problem(bank.owner.post(f"/v1/organizations/{clinic.id}/api-keys", json={"name": "x"}), 404, "not_found")
        assert rows(ApiKey) == before

    def test_a_key_of_another_organization_cannot_be_revoked_through_ones_own(self, service: Service) -> None:
        bank, clinic = service.new_organization("Bank"), service.new_organization("Clinic")
        theirs = clinic.owner.get(f"/v1/organizations/{clinic.id}/api-keys").json()["items"][0]["id"]
        problem(bank.owner.delete(f"/v1/organizations/{bank.id}/api-keys/{theirs}"), 404, "not_found")
        assert clinic.owner.get("/v1/organizations").status_code == 200

    def test_no_key_of_an_organization_is_an_admin(self, service: Service) -> None:
        bank = service.new_organization("Bank")
        answer = bank.owner.post(f"/v1/organizations/{bank.id}/api-keys", json={"name": "x", "role": "admin"})
        assert problem(answer, 422, "request_invalid")["errors"][0]["pointer"] == "/role"


class TestEnrollmentTokens:
    def test_an_operator_makes_one_and_it_is_kept_as_a_hash(self, service: Service) -> None:
        bank = service.new_organization("Bank")
        path = f"/v1/organizations/{bank.id}/enrollment-tokens"
        made = created(bank.operator.post(path, json={"max_uses": 3}))
        assert made["token"].startswith("fle_")
        listed = bank.operator.get(path)
        assert [(item["id"], item["max_uses"], item["uses"]) for item in listed.json()["items"]] == [
            (made["id"], 3, 0)
        ]
        assert "fle_" not in listed.text
        with reading() as session:
            kept = session.get_one(EnrollmentToken, made["id"])
        assert made["token"].rpartition("_")[2] not in str(vars(kept))

    def test_a_viewer_makes_none(self, service: Service) -> None:
        bank = service.new_organization("Bank")
        path = f"/v1/organizations/{bank.id}/enrollment-tokens"
        problem(bank.viewer.post(path, json={}), 403, "role_too_small")
        assert rows(EnrollmentToken) == 0

    @pytest.mark.parametrize(("field", "value"), [("max_uses", 0), ("expires_in_seconds", 0), ("max_uses", "many")])
    def test_a_bound_that_makes_no_sense_is_refused_by_its_pointer(
        self, service: Service, field: str, value: object
    ) -> None:
        bank = service.new_organization("Bank")
        answer = bank.owner.post(f"/v1/organizations/{bank.id}/enrollment-tokens", json={field: value})
        assert problem(answer, 422, "request_invalid")["errors"][0]["pointer"] == f"/{field}"
        assert rows(EnrollmentToken) == 0
