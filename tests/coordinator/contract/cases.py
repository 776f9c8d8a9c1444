"""Requests that schemathesis makes for this world, and what is wrong with what they are answered."""

from collections.abc import Mapping
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.core.transport import Response
from schemathesis.specs.openapi import checks

from tests.coordinator.contract.asking import DOCUMENT, Operation, example
from tests.coordinator.contract.world import World

TOO_LARGE = 413
FUZZED = {
    found.ok().definition.raw["operationId"]: found.ok()
    for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()
    if isinstance(found, Ok)
}
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


def cases(world: World, operation: Operation, mode: GenerationMode) -> st.SearchStrategy[Case[Any]]:
    """Requests, most of them about what there is; none of them waits."""
    fuzzed = FUZZED[operation.id]
    there = [{name: ids[name] for name in operation.names("path")} for ids in world.ids.values()]
    named = [fuzzed.as_strategy(mode, path_parameters=ids) for ids in there] if there[0] else []
    strategy = st.one_of(fuzzed.as_strategy(mode), *named)
    real = {**(example(operation, DOCUMENT) or {}), **world.bodies.get(operation.id, {})}
    if mode is GenerationMode.POSITIVE and real:
        strategy = st.builds(_mixed, strategy, st.just(real), st.sets(st.sampled_from(sorted(real))))
    return strategy.map(impatient)


def can_be_wrong(operation: Operation) -> bool:
    """Whether there is anything in a request that might not keep to the document."""
    return bool(operation.said.get("parameters") or operation.body())


def faults(case: Case[Any], answer: Response, mode: GenerationMode) -> str:
    """What is wrong with the answer to a request of this mode, or nothing."""
    judged = [*CHECKS, checks.negative_data_rejection] if mode is GenerationMode.NEGATIVE else CHECKS
    try:
        # A text beyond its bound can be a body beyond its own, which is a refusal as well.
        case.validate_response(answer, checks=CHECKS if answer.status_code == TOO_LARGE else judged)
    except FailureGroup as failures:
        return "; ".join(str(failure) for failure in failures.exceptions)
    return ""


def _mixed(case: Case[Any], real: Mapping[str, Any], names: set[str]) -> Case[Any]:
    """The request with some fields as they are in a good one."""
    if isinstance(case.body, dict):
        case.body = {**case.body, **{name: real[name] for name in names}}
    return case


def impatient(case: Case[Any]) -> Case[Any]:
    """The request without a wish to wait."""
    if "wait" in case.query and is_number(case.query["wait"]):
        case.query = {**case.query, "wait": 0}
    if case.operation.definition.raw["operationId"] == "lease_job" and isinstance(case.body, dict):
        case.body = {**case.body, "wait_seconds": 0}
    return case


def is_number(value: object) -> bool:
    """Whether the service may read it as a number."""
    try:
        float(str(value))
    except ValueError:
        return False
    return True
