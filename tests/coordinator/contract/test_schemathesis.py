"""Random requests to every operation, as every role: none is answered with 5xx or otherwise than the document says.

Schemathesis makes requests that keep to the document, and others that do not and must be refused. Most name what
there is in the world, so that they come further than to a 404. They are the same in each run. There are a few of each
operation, and the roles take turns with them; FEDLOOM_FUZZ_EXAMPLES says how many more there are, each sent as every
role.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.core.transport import Response

from tests.coordinator.contract.asking import OPERATIONS, Operation
from tests.coordinator.contract.cases import FUZZED, can_be_wrong, cases, faults
from tests.coordinator.contract.world import ROLES

if TYPE_CHECKING:
    from tests.coordinator.contract.world import World

FEW = 3
EXAMPLES = int(os.environ.get("FEDLOOM_FUZZ_EXAMPLES", FEW))
ANSWER_SECONDS = 60.0
Send = Callable[[Case[Any], str], Response]


def test_every_operation_is_asked() -> None:
    assert sorted(FUZZED) == sorted(operation.id for operation in OPERATIONS)


@pytest.mark.timeout(0 if EXAMPLES > FEW else 300)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_request_is_answered_as_the_document_says(world: "World", mode: GenerationMode) -> None:
    found: list[str] = []
    with requests.Session() as session:
        session.trust_env = False

        def send(case: Case[Any], role: str) -> Response:
            return case.call(
                base_url=world.service.url,
                headers=world.authorization(role),
                session=session,
                timeout=ANSWER_SECONDS,
            )

        for operation in OPERATIONS:
            if mode is GenerationMode.POSITIVE or can_be_wrong(operation):
                _fuzz(world, operation, mode, send, found)
                world.restore()
    assert not found, "\n\n".join(found)


def _fuzz(world: "World", operation: Operation, mode: GenerationMode, send: Send, found: list[str]) -> None:
    """Adds to `found` what was not answered as it should."""
    first = iter(range(EXAMPLES * len(ROLES)))

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(world, operation, mode))
    def ask(case: Case[Any]) -> None:
        start = next(first) % len(ROLES)  # who changes something leaves less of it to those after
        roles = ROLES[start:] + ROLES[:start]
        for role in roles if EXAMPLES > FEW else roles[::FEW]:
            answer = send(case, role)
            fault = faults(case, answer, mode)
            if fault:
                found.append(f"{operation.id} as {role} {case!r}: {answer.status_code} {answer.text[:500]}: {fault}")
                return

    ask()
