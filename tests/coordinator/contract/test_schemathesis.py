"""Random requests to every operation, as every role: none is answered with 5xx or otherwise than the document says.

Schemathesis makes requests that keep to the document, and others that do not and must be refused. Most name what
there is in the world, so that they come further than to a 404. They are the same in each run. There are a few of each
operation, and the roles take turns with them; FEDLOOM_FUZZ_EXAMPLES says how many more there are, each sent as every
role.
"""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks

from coordinator.app import create_app
from tests.coordinator.contract.asking import Operation, example, operations
from tests.coordinator.contract.world import ROLES

if TYPE_CHECKING:
    from tests.coordinator.contract.world import World

FEW = 3
EXAMPLES = int(os.environ.get("FEDLOOM_FUZZ_EXAMPLES", FEW))
ANSWER_SECONDS = 60.0
TOO_LARGE = 413
DOCUMENT = create_app().openapi()
OPERATIONS = operations(DOCUMENT)
FUZZED = {
    found.ok().definition.raw["operationId"]: found.ok()
    for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()
}
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
Send = Callable[[Case[Any], str], requests.Response]


def test_every_operation_is_asked() -> None:
    assert sorted(FUZZED) == sorted(operation.id for operation in OPERATIONS)


@pytest.mark.timeout(0 if EXAMPLES > FEW else 300)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_request_is_answered_as_the_document_says(world: "World", mode: GenerationMode) -> None:
    found: list[str] = []
    with requests.Session() as session:
        session.trust_env = False

        def send(case: Case[Any], role: str) -> requests.Response:
            return case.call(
                base_url=world.service.url,
                headers=world.authorization(role),
                session=session,
                timeout=ANSWER_SECONDS,
            )

        for operation in OPERATIONS:
            if mode is GenerationMode.POSITIVE or operation.said.get("parameters") or operation.body():
                _fuzz(world, operation, mode, send, found)
                world.restore()
    assert not found, "\n\n".join(found)


def _fuzz(world: "World", operation: Operation, mode: GenerationMode, send: Send, found: list[str]) -> None:
    """Adds to `found` what was not answered as it should."""
    judged = [*CHECKS, checks.negative_data_rejection] if mode is GenerationMode.NEGATIVE else CHECKS
    first = iter(range(EXAMPLES * len(ROLES)))

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(_cases(world, operation, mode))
    def ask(case: Case[Any]) -> None:
        start = next(first) % len(ROLES)  # who changes something leaves less of it to those after
        roles = ROLES[start:] + ROLES[:start]
        for role in roles if EXAMPLES > FEW else roles[::FEW]:
            answer = send(case, role)
            try:
                # A text beyond its bound can be a body beyond its own, which is a refusal as well.
                case.validate_response(answer, checks=CHECKS if answer.status_code == TOO_LARGE else judged)
            except FailureGroup as failures:
                told = "; ".join(str(failure) for failure in failures.exceptions)
                found.append(f"{operation.id} as {role} {case!r}: {answer.status_code} {answer.text[:500]}: {told}")
                return

    ask()


def _cases(world: "World", operation: Operation, mode: GenerationMode) -> st.SearchStrategy[Case[Any]]:
    """Requests, most of them about what there is; none of them waits."""
    fuzzed = FUZZED[operation.id]
    there = [{name: ids[name] for name in operation.names("path")} for ids in world.ids.values()]
    named = [fuzzed.as_strategy(mode, path_parameters=ids) for ids in there] if there[0] else []
    cases = st.one_of(fuzzed.as_strategy(mode), *named)
    real = {**(example(operation, DOCUMENT) or {}), **world.bodies.get(operation.id, {})}
    if mode is GenerationMode.POSITIVE and real:
        cases = st.builds(_mixed, cases, st.just(real), st.sets(st.sampled_from(sorted(real))))
    return cases.map(_impatient)


def _mixed(case: Case[Any], real: Mapping[str, Any], names: set[str]) -> Case[Any]:
    """The request with some fields as they are in a good one."""
    if isinstance(case.body, dict):
        case.body = {**case.body, **{name: real[name] for name in names}}
    return case


def _impatient(case: Case[Any]) -> Case[Any]:
    if "wait" in case.query and _is_number(case.query["wait"]):
        case.query = {**case.query, "wait": 0}
    if case.operation.definition.raw["operationId"] == "lease_job" and isinstance(case.body, dict):
        case.body = {**case.body, "wait_seconds": 0}
    return case


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True
