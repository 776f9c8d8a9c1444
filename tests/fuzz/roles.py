"""As every role, whatever the document has: requests that keep to it, that do not, and that hold hostile values.

Whatever is sent, the answer is one of the document's and no 5xx, and holds neither a secret nor what concerns others.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import requests
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode

from tests.coordinator.contract.asking import OPERATIONS, Operation
from tests.coordinator.contract.building import Builder
from tests.coordinator.contract.cases import can_be_wrong, cases
from tests.coordinator.contract.cases import faults as differences
from tests.coordinator.contract.hostile import judged
from tests.coordinator.contract.table import role_of
from tests.coordinator.contract.world import HIDDEN_FROM, ROLES, World
from tests.fuzz.exchange import Exchange, exchange
from tests.fuzz.growth import Growth
from tests.fuzz.hostile_requests import Request, hostile_requests
from tests.fuzz.judging import Canaries, LogReader, faults, finding
from tests.fuzz.place import coordinator, secrets, whereabouts
from tests.fuzz.record import Finding
from tests.fuzz.turns import Turn
from tests.support.federation_rig import FederationRig
from tests.support.service import Identity, Service

EXAMPLES = 100
ANSWER_SECONDS = 30.0


def fuzz(turn: Turn) -> None:
    """Asks until the time is over."""
    with coordinator(turn.folder) as (service, web):
        world = Builder(FederationRig(service)).world()
        signer = service.new_worker(world.home, "who signs anything").identity
        canaries = Canaries(secrets(keys(service, world)), whereabouts(), hidden(world))
        growth = Growth({"web process, asked by every role": lambda: web.pid})
        log = LogReader("web process", web.log)
        with asker(turn, world.keep(), signer, canaries) as ask:

            def example(data: st.DataObject) -> None:
                ask.one(data)
                growth.look(turn)

            turn.begin()
            turn.draw(example, EXAMPLES, lambda: log.judge(turn, canaries))
        growth.judge(turn)


class Asker:
    """Sends one request after the other, judges what comes, and puts back what was changed."""

    def __init__(
        self, turn: Turn, world: World, signer: Identity, canaries: Canaries, session: requests.Session
    ) -> None:
        self._turn, self._world, self._signer = turn, world, signer
        self._canaries, self._session = canaries, session

    def one(self, data: st.DataObject) -> None:
        """Any operation, as any role, most often as one that may do it."""
        operation = data.draw(st.sampled_from(OPERATIONS))
        role = data.draw(st.sampled_from([role_of(operation), role_of(operation), *ROLES]))
        kinds = [*GenerationMode, None, None] if can_be_wrong(operation) else [GenerationMode.POSITIVE, None]
        mode = data.draw(st.sampled_from(kinds))
        if mode is None:
            self._ask(data.draw(hostile_requests(self._world, operation, role, self._signer)), role)
        else:
            self._call(data.draw(cases(self._world, operation, mode)), mode, operation, role)

    def _call(self, case: Case[Any], mode: GenerationMode, operation: Operation, role: str) -> None:
        authorization = self._world.authorization(role)
        url = self._world.service.url
        try:
            answer = case.call(base_url=url, headers=authorization, session=self._session, timeout=ANSWER_SECONDS)
        except requests.RequestException as error:
            self._unanswered(operation, role, case.as_curl_command(), error)
        else:
            self._judge(operation, role, exchange(answer), differences(case, answer, mode))

    def _ask(self, request: Request, role: str) -> None:
        url = self._world.service.url + request.target
        headers = [(name.encode(), value) for name, value in request.headers.items()]
        try:
            answer = self._world.service.anonymous.request(
                request.operation.method, url, headers=headers, content=request.content, timeout=ANSWER_SECONDS
            )
        except (httpx.LocalProtocolError, httpx.InvalidURL):  # it cannot be sent
            return
        except httpx.TransportError as error:
            self._unanswered(request.operation, role, repr(request), error)
        else:
            self._judge(request.operation, role, exchange(answer), judged(request.operation, answer))

    def _unanswered(self, operation: Operation, role: str, sent: str, error: Exception) -> None:
        self._turn.add(Finding("stuck", role, f"{operation.id}: {type(error).__name__}", sent, str(error)))

    def _judge(self, operation: Operation, role: str, came: Exchange, otherwise: str) -> None:
        self._turn.record.answered(role, came.status)
        for fault in faults(role, came, self._canaries, otherwise):
            self._turn.add(finding(role, fault, operation.id, came))
        if came.changes:
            self._canaries.keep(came)
            self._world.restore()


@contextmanager
def asker(turn: Turn, world: World, signer: Identity, canaries: Canaries) -> Iterator[Asker]:
    """One over a world that is kept."""
    with requests.Session() as session:
        session.trust_env = False
        yield Asker(turn, world, signer, canaries, session)


def keys(service: Service, world: World) -> dict[str, str]:
    """Keys and tokens of this world by name."""
    made = {f"key of the {role}": str(world.tokens[role]()) for role in ("owner", "operator", "viewer", "member")}
    made |= {"key of an admin": service.admin_key, "key that was revoked": world.tokens["revoked_key"]()}
    return made | {"enrollment token": world.bodies["enroll_worker"]["token"]}


def hidden(world: World) -> dict[str, set[str]]:
    """Role -> ids of which it learns nothing."""
    return {role: set().union(*(world.private[of] for of in others)) for role, others in HIDDEN_FROM.items()}
