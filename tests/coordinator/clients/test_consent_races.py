"""Races between a change of a draft and requests that depend on it: both wait for the federation's row."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx

from tests.coordinator.clients.drafts import Draft
from tests.support.federation_rig import DATASET
from tests.support.service import accept

RACES = 12


class TestChange:
    def test_nobody_ever_takes_part_in_what_was_not_agreed_to(self, draft: Draft) -> None:
        for number in range(RACES):
            seen = draft.digest
            accepted, changed = together(partial(draft.accept, seen), partial(draft.change, rounds=10 + number))
            assert (changed, accepted in (200, 412)) == (200, True)
            shown = draft.invitation()
            assert (shown["state"], shown["agreed_digest"]) == ("invited", None), (number, accepted)
            assert shown["definition_digest"] != seen

    def test_no_client_stays_of_an_organization_that_is_asked_again(self, draft: Draft) -> None:
        for number in range(RACES):
            accept(draft.clinic.owner, draft.rig.federation_id).raise_for_status()
            wish = {"worker_id": draft.rig.actor(draft.clinic).worker.id, "dataset": DATASET}
            register = partial(draft.clinic.owner.post, draft.rig.path("clients"), json=wish)
            registered, changed = together(register, partial(draft.change, rounds=10 + number))
            assert (changed, registered in (201, 409)) == (200, True)
            assert {row["state"] for row in draft.rig.get("clients")["items"]} <= {"left"}, (number, registered)


def together(*calls: Callable[[], httpx.Response]) -> list[int]:
    """Statuses of requests that are sent at one moment."""
    ready = threading.Barrier(len(calls))

    def asked(call: Callable[[], httpx.Response]) -> int:
        ready.wait()
        return call().status_code

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(asked, calls))
