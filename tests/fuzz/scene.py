"""The scene of a hostile worker's lives: participants, the coordinator that is asked, and findings."""

import sys
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import requests
from hypothesis.errors import HypothesisException
from schemathesis import Case
from schemathesis.core.transport import Response

from tests.fuzz.exchange import Exchange, exchange
from tests.fuzz.judging import Canaries, LogReader, faults, finding
from tests.fuzz.record import Finding, Kind
from tests.fuzz.turns import Turn
from tests.support.federation_rig import Actor, FederationRig
from tests.support.kept_rows import KeptRows

WHO = "hostile worker"
OPEN = ("running", "paused")
REMEMBERED = 40
ANSWER_SECONDS = 30.0


class Abandoned(KeyboardInterrupt):
    """A life broke a rule, and that is recorded: hypothesis need not try it again."""


@dataclass
class Scene:
    """`actors`: the honest workers, and the hostile one. `last`: the last requests of this life.

    `changes` counts the requests of all lives that may have changed something.
    """

    turn: Turn
    rig: FederationRig
    actors: list[Actor]
    canaries: Canaries
    logs: list[LogReader]
    look: Callable[[], None]
    session: requests.Session
    rows: KeptRows
    changes: int = 0
    last: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def begin(self) -> None:
        """Another life, if there is time. Raises TimeOver."""
        self.turn.check()
        self.last.clear()
        self.canaries.hidden = {WHO: set()}

    def hide(self, *ids: str) -> None:
        """The hostile worker learns nothing of these."""
        self.canaries.hidden = {WHO: {*self.canaries.hidden.get(WHO, ()), *ids}}

    def call(self, case: Case[Any]) -> Response:
        """The answer to a request that schemathesis made, as the hostile worker."""
        worker = self.actors[-1].worker
        headers = {"Authorization": f"Bearer {worker.identity.token()}"}
        url = str(worker.http.base_url)
        return case.call(base_url=url, headers=headers, session=self.session, timeout=ANSWER_SECONDS)

    def judge(self, operation: str, answer: httpx.Response | Response, otherwise: str) -> None:
        """Finds what is wrong with an answer to the hostile worker."""
        came = exchange(answer)
        if isinstance(answer, Response):
            self._note(WHO, came)
        for fault in faults(WHO, came, self.canaries, otherwise):
            self.turn.add(finding(WHO, fault, operation, came))

    def overhear(self, who: str, http: httpx.Client) -> None:
        """From now on its answers are counted, and its requests remembered."""

        def hear(answer: httpx.Response) -> None:
            answer.read()
            came = exchange(answer)
            self._note(who, came)
            for fault in faults(who, came, Canaries({})) if who != WHO else ():
                self.turn.add(finding(who, fault, answer.request.url.path, came))

        http.event_hooks = {"response": [hear]}

    def _note(self, who: str, came: Exchange) -> None:
        self.turn.record.answered(who, came.status)
        self.changes += came.changes
        self.last.append({"who": who, "status": came.status, **came.shown()})

    def ended(self, state: str) -> None:
        """Counts a life by the state that its federation ended in."""
        self.turn.record.ends[state] += 1

    def end(self, state: Callable[[], str], finish: Callable[[], None]) -> None:
        """Lets a life finish unless it has broken a rule. Raises Abandoned when anything is wrong with it."""
        error = sys.exception()
        if error is None:
            try:
                finish()
            except Exception as failure:
                error = failure
        self.rig.federation_id = ""
        self.rows.put_back()
        self.rig.drop_messages()
        for log in self.logs:
            log.judge(self.turn, self.canaries)
        self.look()
        if isinstance(error, Exception) and not isinstance(error, HypothesisException):
            kind: Kind = "stuck" if state() in OPEN else "broken"
            trace = "".join(traceback.format_exception(error)[-3:])
            about = str(error).partition("\n")[0][:80]
            self.turn.add(Finding(kind, WHO, about, list(self.last), trace))
            raise Abandoned from error
