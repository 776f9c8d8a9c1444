"""After a whole federation no other user of the machine may read a byte of it, at the coordinator or at a node."""

import os
import stat
from pathlib import Path

import pytest

from tests.support.nodes import Consortium
from tests.support.places import on_servers

pytestmark = pytest.mark.once


def open_ones(folder: Path) -> list[str]:
    """What lies there and is not its user's alone, with its mode."""
    found = [folder, *folder.rglob("*")]
    modes = {path: path.lstat() for path in found if path.exists() and not path.is_symlink()}
    return [
        f"{path.relative_to(folder)} {stat.filemode(status.st_mode)}"
        for path, status in modes.items()
        if status.st_mode & 0o077 or status.st_uid != os.geteuid()
    ]


def test_every_file_and_folder_of_a_federation_is_its_users_alone(two_nodes: Consortium, tmp_path: Path) -> None:
    config = {"local_steps": 2, "batch_size": 8, "learning_rate": 0.02}
    federation_id = two_nodes.start(rounds=2, algorithm="fibecfed", config=config)
    coordinator = two_nodes.installation.folder
    while_running = open_ones(coordinator)
    assert while_running == []
    two_nodes.end(federation_id)
    places = [coordinator, *(node.folder / "state" for node in two_nodes.nodes)]
    assert {place.name: open_ones(place) for place in places} == {place.name: [] for place in places}
    kept = {path.name for place in places for path in place.iterdir()}
    of_coordinator = set() if on_servers() else {"coordinator.sqlite", "artifacts", "signing-key.pem"}
    assert kept >= {"identity", "outbox", "cache", "memory"} | of_coordinator
    exported = tmp_path / "own adapter"
    client_id = two_nodes.nodes[0].http.get(f"/v1/federations/{federation_id}/clients").json()["items"][0]["id"]
    done = two_nodes.nodes[0].command("export", federation_id, client_id, str(exported))
    assert done.returncode == 0, done.stdout + done.stderr
    assert open_ones(exported) == []
