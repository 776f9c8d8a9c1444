"""The demo's federation: run over REST from its draft to its end, with a live table of its rounds."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from examples.quickstart.installation import Installation, Member
from examples.quickstart.rest import Api, Federation, Participant
from examples.quickstart.rounds_table import rounds_table


def run(
    installation: Installation, members: Sequence[Member], definition: Mapping[str, Any], console: Console
) -> str:
    """Run a federation from its draft to its end and return its id. Raises SystemExit if it does not complete."""
    apis = [Api.with_key(installation.url, member.api_key) for member in members]
    federation = Federation.create(
        definition,
        [
            Participant(api, member.organization_id, _client(member))
            for api, member in zip(apis, members, strict=True)
        ],
    )
    names = dict(zip(federation.client_ids, (member.name for member in members), strict=True))
    federation.start()
    outcome = watch(federation, names, console)
    for api in apis:
        api.close()
    if outcome["state"] != "completed":
        raise SystemExit(
            f"the federation {outcome['state']}: {outcome.get('reason')}: {outcome.get('reason_detail')}"
        )
    return federation.id


def _client(member: Member) -> Mapping[str, Any]:
    return {"worker_id": member.worker_id, "dataset": "messages", "name": member.name}


def watch(federation: Federation, names: Mapping[str, str], console: Console) -> Mapping[str, Any]:
    """Show the rounds until the federation ends: a live table on a terminal, otherwise a table at the end."""
    if not console.is_terminal:
        *_, (state, table) = _snapshots(federation, names)
        console.print(table)
        return state
    with Live(console=console, refresh_per_second=4) as live:
        for state, table in _snapshots(federation, names):  # noqa: B007 - the last state is returned
            live.update(table)
    return state


def _snapshots(federation: Federation, names: Mapping[str, str]) -> Iterator[tuple[Mapping[str, Any], Any]]:
    for state in federation.wait():
        rounds = federation.rounds()
        jobs = federation.jobs(rounds[-1]["id"]) if rounds else []
        yield state, rounds_table(state, rounds, jobs, names)


def download_adapter(installation: Installation, owner: Member, federation_id: str, folder: Path) -> Path:
    """Download the federation's adapter and unpack it into `folder`."""
    api = Api.with_key(installation.url, owner.api_key)
    Federation(api, federation_id).download(folder)
    api.close()
    return folder
