"""Record of a federation's outcome: the parts that must not depend on which process died during it."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from tests.support.nodes import Consortium, Node

ADAPTER = "adapter_model.safetensors"
PATIENCE_SECONDS = 60.0
POLLING_SECONDS = 0.1
MOST_ITEMS = 200
# How often these happen is a matter of who died.
CHANCE = ("round.held_up",)
# A download that was cut short is made again.
TRAFFIC = ("download_bytes",)
SUMMED = ("rounds", "examples", "updates_accepted", "updates_rejected", "updates_failed", "upload_bytes")

Record = dict[str, Any]


def ask(node: Node, path: str, **parameters: Any) -> Any:
    """An answer of the installation; waits while it is out of service, and takes no other error."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            answer = node.http.get(path, params=parameters)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                answer.raise_for_status()
                return answer
            problem = answer.text
        except httpx.TransportError as error:
            problem = repr(error)
        assert time.monotonic() < deadline, f"{path} is out of service: {problem}"
        time.sleep(POLLING_SECONDS)


def federation(nodes: Consortium, federation_id: str) -> dict[str, Any]:
    """The federation as its owner sees it."""
    shown: dict[str, Any] = ask(nodes.owner, f"/v1/federations/{federation_id}").json()
    return shown


def states(nodes: Consortium, federation_id: str) -> dict[str, Any]:
    """Who waits for what: federation, rounds and jobs."""
    shown = federation(nodes, federation_id)
    told = [
        {name: round_[name] for name in ("kind", "number", "attempt", "state", "waiting_for", "reason")}
        | {"jobs": [_job(job) for job in _jobs(nodes, round_["id"])]}
        for round_ in _rounds(nodes, federation_id)
    ]
    return {name: shown[name] for name in ("state", "waiting_for", "reason", "reason_detail")} | {"rounds": told}


def record(nodes: Consortium, federation_id: str) -> Record:
    """Every update and how often it was counted, every state, and the adapter's digest."""
    shown = federation(nodes, federation_id)
    path = f"/v1/federations/{federation_id}"
    made: Record = {name: shown[name] for name in ("state", "reason", "rounds_done")}
    made["events"] = dict(sorted(Counter(_happened(nodes, path)).items()))
    made["rounds"] = [_round(nodes, row) for row in _rounds(nodes, federation_id)]
    made["ledger"] = {node.name: _ledger(node, federation_id) for node in nodes.nodes}
    if shown["state"] == "completed":
        provenance = ask(nodes.owner, f"{path}/adapter/provenance.json").json()
        made["provenance"] = [_chained(row) for row in provenance["rounds"]]
        adapter = ask(nodes.owner, f"{path}/adapter/{ADAPTER}").content
        made["adapter"] = "sha256:" + hashlib.sha256(adapter).hexdigest()
    return made


def difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Of each part that differs: what was expected, and what was found."""
    names = sorted({*expected, *found})
    return {
        name: {"expected": expected.get(name), "found": found.get(name)}
        for name in names
        if json.dumps(expected.get(name)) != json.dumps(found.get(name))
    }


def _listed(node: Node, path: str) -> Iterator[dict[str, Any]]:
    page = ask(node, path, limit=MOST_ITEMS).json()
    while True:
        yield from page["items"]
        if page["next_cursor"] is None:
            return
        page = ask(node, path, limit=MOST_ITEMS, cursor=page["next_cursor"]).json()


def _rounds(nodes: Consortium, federation_id: str) -> list[dict[str, Any]]:
    return list(_listed(nodes.owner, f"/v1/federations/{federation_id}/rounds"))


def _jobs(nodes: Consortium, round_id: str) -> list[dict[str, Any]]:
    return list(_listed(nodes.owner, f"/v1/rounds/{round_id}/jobs"))


def _job(job: Mapping[str, Any]) -> dict[str, Any]:
    return {name: job[name] for name in ("kind", "ordinal", "state", "attempt", "problem")}


def _round(nodes: Consortium, row: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: row[name] for name in ("kind", "number", "attempt", "state", "reason", "not_reproducible")}
    told["metrics"] = {name: value for name, value in row["metrics"].items() if name not in TRAFFIC}
    told["jobs"] = sorted([job["kind"], job["ordinal"], job["state"]] for job in _jobs(nodes, row["id"]))
    return told


def _chained(row: Mapping[str, Any]) -> dict[str, Any]:
    updates = [{name: update[name] for name in ("ordinal", "weight", "digest")} for update in row["updates"]]
    return {"state": row["state_digest"], "updates": updates}


def _ledger(node: Node, federation_id: str) -> dict[str, Any]:
    listed = _listed(node, f"/v1/organizations/{node.organization_id}/ledger")
    (entry,) = [row for row in listed if row["federation_id"] == federation_id]
    return {name: entry[name] for name in SUMMED}


def _happened(nodes: Consortium, path: str) -> Iterator[str]:
    after = 0
    while page := ask(nodes.owner, f"{path}/events", after=after).json()["items"]:
        yield from (event["type"] for event in page if event["type"] not in CHANCE)
        after = page[-1]["number"]
