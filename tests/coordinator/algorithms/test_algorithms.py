"""The list of algorithms is what the registry finds."""

import jsonschema
import pytest

from federated import registry
from tests.support.service import Service, problem


def test_the_list_is_the_registry(service: Service) -> None:
    items = service.admin.get("/v1/algorithms").json()["items"]
    assert [item["name"] for item in items] == list(registry.algorithms())


@pytest.mark.parametrize("name", list(registry.algorithms()))
def test_each_is_shown_with_the_schema_that_its_example_keeps(service: Service, name: str) -> None:
    shown = service.admin.get(f"/v1/algorithms/{name}").json()
    algorithm = registry.algorithm(name)
    assert (shown["title"], shown["revision"], shown["personal"]) == (
        algorithm.title,
        algorithm.revision,
        algorithm.personal,
    )
    assert shown["trainables"] == sorted(algorithm.trainables)
    assert shown["summary"]
    assert not shown["summary"].startswith("#")
    validator = jsonschema.Draft202012Validator(shown["config_schema"])
    validator.validate(dict(algorithm.example))
    assert not validator.is_valid({"no_such_field": 1})


def test_a_worker_sees_them_too(service: Service) -> None:
    worker = service.new_worker(service.new_organization("Bank"), "gpu-1")
    assert worker.http.get("/v1/algorithms").status_code == 200


def test_one_that_is_not_there_is_a_problem_that_names_the_others(service: Service) -> None:
    found = problem(service.admin.get("/v1/algorithms/nothing"), 404, "algorithm_unknown")
    for name in registry.algorithms():
        assert name in found["detail"]
