"""Names over the API: any printable text, the same in every form of Unicode, and nothing else."""

import unicodedata

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federated.protocol import Capabilities, DatasetFacts
from tests.support.bad_names import FORBIDDEN, PRINTABLE, SHOWN
from tests.support.service import Identity, Service, created, problem

FEW = settings(
    max_examples=15,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
COMPOSED, DECOMPOSED = "Städtische Klinik", "Sta\u0308dtische Klinik"
DATASET = "Befunde Ärzte"


def organization(service: Service, name: str, **headers: str) -> httpx.Response:
    return service.admin.post("/v1/organizations", json={"name": name}, headers=headers)


@pytest.mark.parametrize("name", SHOWN)
def test_a_printable_name_is_kept_as_it_is(service: Service, name: str) -> None:
    made = created(organization(service, name))
    assert service.admin.get(f"/v1/organizations/{made['id']}").json()["name"] == made["name"] == name


@FEW
@given(name=PRINTABLE)
def test_any_printable_name_is_kept_in_its_normal_form(service: Service, name: str) -> None:
    answer = organization(service, name)
    if answer.status_code != 409:
        assert created(answer)["name"] == unicodedata.normalize("NFC", name)


@FEW
@given(hidden=FORBIDDEN.filter(lambda character: not "\ud800" <= character <= "\udfff"), before=st.booleans())
def test_what_cannot_be_seen_is_refused_by_its_pointer(service: Service, hidden: str, before: bool) -> None:
    found = problem(organization(service, f"{hidden}ab" if before else f"a{hidden}b"), 422, "request_invalid")
    assert [fault["pointer"] for fault in found["errors"]] == ["/name"]
    assert hidden not in found["errors"][0]["detail"]


class TestOneName:
    def test_in_two_forms_is_given_once(self, service: Service) -> None:
        made = created(organization(service, DECOMPOSED))
        assert made["name"] == COMPOSED
        problem(organization(service, COMPOSED), 409, "name_taken")
        problem(organization(service, DECOMPOSED), 409, "name_taken")

    def test_is_answered_again_under_its_key(self, service: Service) -> None:
        key = {"Idempotency-Key": "one"}
        made = created(organization(service, COMPOSED, **key))
        assert created(organization(service, COMPOSED, **key)) == made
        assert organization(service, "Acme, Inc.", **key).status_code == 422

    def test_of_a_worker_is_given_once_in_an_organization(self, service: Service) -> None:
        clinic = service.new_organization(COMPOSED)
        token = service.new_enrollment_token(clinic.id, name="Geräte im Keller", max_uses=2)
        made = created(enrolled(service, token, "Rechner \u00e4"))
        assert made["organization_name"] == COMPOSED
        problem(enrolled(service, token, "Rechner a\u0308"), 409, "worker_name_taken")


def enrolled(service: Service, token: str, name: str) -> httpx.Response:
    body = Identity().enrollment(token, unicodedata.normalize("NFC", name)) | {"name": name}
    return service.anonymous.post("/v1/workers/enroll", json=body)


def test_a_data_set_is_found_by_either_form_of_its_name(service: Service) -> None:
    """From its worker's heartbeat to the client of a federation, its ledger and its audit log."""
    clinic = service.new_organization(COMPOSED)
    facts = (DatasetFacts(name=DATASET),)
    worker = service.new_worker(clinic, "Rechner, Keller", Capabilities(algorithms={"fedavg": 1}, datasets=facts))
    definition = {
        "name": "Befunde – Süd/Nord", "task": {"task": "sequence_classification", "labels": ["gut", "schlecht"]},
        "base_model": {"id": "klein"}, "algorithm": "fedavg", "config": {"local_steps": 1},
    }  # fmt: skip
    federation = created(clinic.owner.post("/v1/federations", json=definition))
    path = f"/v1/federations/{federation['id']}"
    wish = {"worker_id": worker.id, "dataset": unicodedata.normalize("NFD", DATASET)}
    client = created(clinic.owner.post(f"{path}/clients", json=wish))
    assert (client["dataset"], client["name"]) == (DATASET, f"Rechner, Keller {DATASET}")
    problem(clinic.owner.post(f"{path}/clients", json=wish | {"dataset": DATASET}), 409, "client_exists")
    copied = created(clinic.owner.post(f"{path}/clone", json={}))
    assert copied["name"] == f"{definition['name']} copy"
    (entry,) = clinic.owner.get(f"/v1/organizations/{clinic.id}/ledger").json()["items"]
    assert entry["federation_name"] == definition["name"]
    acts = clinic.owner.get(f"/v1/organizations/{clinic.id}/audit?limit=200").json()["items"]
    assert DATASET in [act["details"].get("dataset") for act in acts]
