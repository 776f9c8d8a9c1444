"""After a whole federation no other user of the machine may read a byte of it, at the coordinator or at a node."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nodes import Consortium, consortium
from tests.support.places import on_servers

pytestmark = pytest.mark.once


@pytest.fixture
def loose(tmp_path: Path) -> Iterator[Consortium]:
    """Everything started by a user whose files others may usually read."""
    (tmp_path / "coordinator").mkdir(0o700)
    before = os.umask(0o022)
    try:
        with consortium(tmp_path, ["north", "south"], reconcile_seconds=1) as running:
            yield running
    finally:
        os.umask(before)


def open_ones(folder: Path) -> list[str]:
    """What lies there and is not its user's alone, with its mode."""
    found = [folder, *folder.rglob("*")]
    modes = {path: path.lstat() for path in found if path.exists() and not path.is_symlink()}
    return [
        f"{path.relative_to(folder)} {stat.filemode(status.st_mode)}"
        for path, status in modes.items()
        if status.st_mode & 0o077 or status.st_uid != os.geteuid()
    ]


def test_every_file_and_folder_of_a_federation_is_its_users_alone(loose: Consortium, tmp_path: Path) -> None:
    personal = {"algorithm": "fibecfed", "config": {"local_steps": 2, "batch_size": 8, "learning_rate": 0.02}}
    for changes in ({"rounds": 2}, {"rounds": 1, **personal}):
        federation_id = loose.start(**changes)
        while_running = open_ones(tmp_path / "coordinator")
        assert while_running == []
        loose.end(federation_id)
    places = [tmp_path / "coordinator", *(node.folder / "state" for node in loose.nodes)]
    assert {place.name: open_ones(place) for place in places} == {place.name: [] for place in places}
    kept = {path.name for place in places for path in place.iterdir()}
    of_coordinator = set() if on_servers() else {"coordinator.sqlite", "artifacts", "signing-key.pem"}
    assert kept >= {"identity", "outbox", "cache", "memory"} | of_coordinator
    exported = tmp_path / "own adapter"
    client_id = loose.nodes[0].http.get(f"/v1/federations/{federation_id}/clients").json()["items"][0]["id"]
    done = loose.nodes[0].command("export", federation_id, client_id, str(exported))
    assert done.returncode == 0, done.stdout + done.stderr
    assert open_ones(exported) == []
