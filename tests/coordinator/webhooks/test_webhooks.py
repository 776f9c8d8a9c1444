"""Webhooks over HTTP: permissions to create, see and delete them, and refused URLs."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from coordinator.db.sessions import reading
from coordinator.models import Webhook
from coordinator.webhooks.service import MOST_WEBHOOKS
from tests.support.audit_log import actions, chain_of
from tests.support.service import Organization, Service, created, problem

URL = "https://hooks.example.org/secret-path"


def path(organization: Organization, *parts: str) -> str:
    return "/".join([f"/v1/organizations/{organization.id}/webhooks", *parts])


def make(client: httpx.Client, organization: Organization, **fields: Any) -> dict[str, Any]:
    return created(client.post(path(organization), json={"url": URL, **fields}))


class TestMaking:
    def test_an_owner_makes_one_and_sees_its_secret_once(self, service: Service, bank: Organization) -> None:
        answer = bank.owner.post(path(bank), json={"url": URL}, headers={"Idempotency-Key": "one"})
        made = created(answer)
        assert (made["url"], made["events"], made["secret"][:6]) == (URL, ["*"], "whsec_")
        assert answer.headers["location"] == path(bank, made["id"])
        again = bank.owner.post(path(bank), json={"url": URL}, headers={"Idempotency-Key": "one"})
        assert (created(again)["secret"], again.json()["secret_shown"]) == (None, True)
        shown = bank.operator.get(path(bank, made["id"]))
        assert shown.json() == bank.operator.get(path(bank)).json()["items"][0]
        assert made["secret"] not in shown.text
        with reading() as session:
            assert [row.secret for row in session.query(Webhook)] == [made["secret"]]

    def test_others_may_not(self, service: Service, bank: Organization) -> None:
        made = make(bank.owner, bank)
        problem(bank.operator.post(path(bank), json={"url": URL}), 403, "role_too_small")
        problem(bank.viewer.get(path(bank)), 403, "role_too_small")
        problem(bank.operator.delete(path(bank, made["id"])), 403, "role_too_small")
        clinic = service.new_organization("Clinic")
        problem(clinic.owner.get(path(bank, made["id"])), 404, "not_found")
        problem(clinic.owner.get(path(clinic, made["id"])), 404, "not_found")
        problem(clinic.owner.get(path(clinic, made["id"], "deliveries")), 404, "not_found")
        problem(bank.owner.get(path(bank, made["id"], "deliveries", "dlv_none")), 404, "not_found")
        problem(service.admin.post("/v1/organizations/org_none/webhooks", json={"url": URL}), 404, "not_found")

    def test_a_deleted_one_is_gone(self, bank: Organization) -> None:
        made = make(bank.owner, bank)
        assert bank.owner.delete(path(bank, made["id"])).status_code == 204
        problem(bank.owner.delete(path(bank, made["id"])), 404, "not_found")
        assert bank.owner.get(path(bank)).json()["items"] == []

    def test_both_are_on_record_with_the_host_alone(self, service: Service, bank: Organization) -> None:
        made = make(bank.owner, bank, events=["round.*"])
        bank.owner.delete(path(bank, made["id"])).raise_for_status()
        found = chain_of(service, bank.id)[-2:]
        assert actions(found) == ["webhook.created", "webhook.deleted"]
        assert [entry["details"] for entry in found] == [{"host": "hooks.example.org", "events": ["round.*"]}] * 2

    def test_there_are_so_many_and_no_more(self, bank: Organization) -> None:
        for _ in range(MOST_WEBHOOKS):
            make(bank.owner, bank)
        problem(bank.owner.post(path(bank), json={"url": URL}), 409, "too_many_webhooks")


class TestRefusals:
    @pytest.mark.parametrize(
        "url", ["http://hooks.example.org", "https://10.0.0.1/", "https://localhost/", "http://127.0.0.1:1"]
    )
    def test_an_address_that_is_not_public_is_refused_by_name(self, bank: Organization, url: str) -> None:
        found = problem(bank.owner.post(path(bank), json={"url": url}), 422, "url_refused")
        assert [error["pointer"] for error in found["errors"]] == ["/url"]

    @pytest.mark.parametrize(
        ("fields", "pointer"),
        [
            ({"url": "gopher://x"}, "/url"),
            ({"url": "https://x.org/" + "x" * 2048}, "/url"),
            ({"events": []}, "/events"),
            ({"events": ["*", "round.admired"]}, "/events/1"),
            ({"secret": "mine"}, "/secret"),
        ],
    )
    def test_a_bad_field_is_named(self, bank: Organization, fields: dict[str, Any], pointer: str) -> None:
        found = problem(bank.owner.post(path(bank), json={"url": URL} | fields), 422, "request_invalid")
        assert [error["pointer"] for error in found["errors"]] == [pointer]

    def test_the_unknown_event_is_told_what_there_is(self, bank: Organization) -> None:
        found = problem(bank.owner.post(path(bank), json={"url": URL, "events": ["x"]}), 422, "request_invalid")
        assert "round.closed" in found["detail"]


def test_the_filters_are_in_the_document(service: Service, data_folder: Path) -> None:
    schema = service.anonymous.get("/openapi.json").json()["components"]["schemas"]["WebhookCreate"]
    assert {"*", "round.*", "federation.completed"} <= set(schema["properties"]["events"]["items"]["enum"])
