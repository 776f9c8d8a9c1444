"""A federation over REST from a user's side: create, invite, accept, register, start, watch, download."""

import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from examples.quickstart.installation import Api, Installation, Member
from examples.quickstart.rounds_table import rounds_table

POLL_SECONDS = 0.5
FINAL_STATES = ("completed", "failed", "cancelled")


def run(
    installation: Installation, members: Sequence[Member], definition: Mapping[str, Any], console: Console
) -> str:
    """Run a federation from its draft to its end and return its id. Raises SystemExit if it does not complete."""
    owner = members[0]
    apis = {member.name: Api(installation.url, member.api_key) for member in members}
    federation = apis[owner.name]("POST", "/v1/federations", definition)["id"]
    for member in members[1:]:
        apis[owner.name](
            "POST", f"/v1/federations/{federation}/invitations", {"organization_id": member.organization_id}
        )
        terms = apis[member.name]("GET", f"/v1/federations/{federation}")
        consent = {"definition_digest": terms["definition_digest"]}
        apis[member.name]("POST", f"/v1/federations/{federation}/accept", consent)
    names = {}
    for member in members:
        body = {"worker_id": member.worker_id, "dataset": "messages", "name": member.name}
        names[apis[member.name]("POST", f"/v1/federations/{federation}/clients", body)["id"]] = member.name
    apis[owner.name]("POST", f"/v1/federations/{federation}/start")
    outcome = watch(apis[owner.name], federation, names, console)
    for api in apis.values():
        api.close()
    if outcome["state"] != "completed":
        raise SystemExit(
            f"the federation {outcome['state']}: {outcome.get('reason')}: {outcome.get('reason_detail')}"
        )
    return str(federation)


def watch(api: Api, federation: str, names: Mapping[str, str], console: Console) -> Mapping[str, Any]:
    """Show the rounds until the federation ends: a live table on a terminal, otherwise a table at the end."""
    if not console.is_terminal:
        *_, (state, table) = _snapshots(api, federation, names)
        console.print(table)
        return state
    with Live(console=console, refresh_per_second=4) as live:
        for state, table in _snapshots(api, federation, names):  # noqa: B007 - the last state is returned
            live.update(table)
    return state


def _snapshots(api: Api, federation: str, names: Mapping[str, str]) -> Iterator[tuple[Mapping[str, Any], Any]]:
    while True:
        state = api("GET", f"/v1/federations/{federation}")
        rounds = _all(api, f"/v1/federations/{federation}/rounds")
        jobs = _all(api, f"/v1/rounds/{rounds[-1]['id']}/jobs") if rounds else []
        yield state, rounds_table(state, rounds, jobs, names)
        if state["state"] in FINAL_STATES:
            return
        time.sleep(POLL_SECONDS)


def _all(api: Api, path: str) -> list[Mapping[str, Any]]:
    page = api("GET", f"{path}?limit=100")
    items = list(page["items"])
    while page.get("next_cursor"):
        page = api("GET", f"{path}?limit=100&cursor={page['next_cursor']}")
        items += page["items"]
    return items


def download_adapter(installation: Installation, owner: Member, federation: str, folder: Path) -> Path:
    """Download the federation's adapter and unpack it into `folder`."""
    api = Api(installation.url, owner.api_key)
    with zipfile.ZipFile(BytesIO(api.download(f"/v1/federations/{federation}/adapter"))) as archive:
        archive.extractall(folder)
    api.close()
    return folder
