"""Backup and restore by the commands in the operators' guide."""

import os
import re
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

import obstore
import pytest

from coordinator.artifacts.store import objects
from coordinator.settings import get_settings
from tests.architecture.sizes import ROOT
from tests.support import service as support
from tests.support.places import places, settled
from tests.support.service import Service

FIRST = b"kept" * 1000


def commands(title: str) -> str:
    """The block below `title` in the guide."""
    text = (ROOT / "docs/operators.md").read_text("utf-8")
    match = re.search(rf"\*\*{title}\.\*\*.*?```bash\n(.*?)```", text, flags=re.DOTALL)
    assert match is not None
    return match[1]


def run(title: str, **variables: object) -> None:
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    subprocess.run(["bash", "-euo", "pipefail", "-c", commands(title)], env=environment, check=True)  # noqa: S607


def digest(content: bytes) -> str:
    return "sha256:" + sha256(content).hexdigest()


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    return tmp_path / "backup"


@pytest.mark.sqlite
def test_what_was_there_at_the_backup_is_there_after_a_restore(data_folder: Path, backup: Path) -> None:
    with support.serving() as before:
        key, worker_id = _fill(before)
        run("Back up", DATA=data_folder, BACKUP=backup)
        before.admin.post("/v1/organizations", json={"name": "Later"}).raise_for_status()
    shutil.rmtree(data_folder)
    run("Restore", DATA=data_folder, BACKUP=backup)
    support.forget_settings()
    with support.serving() as after:
        _check(after, key, worker_id)


@pytest.mark.engines
def test_so_it_is_with_postgresql_and_a_copy_of_the_bucket(data_folder: Path, backup: Path, tmp_path: Path) -> None:
    with support.serving() as before:
        key, worker_id = _fill(before)
        run("Back up PostgreSQL", BACKUP=backup, PG_URL=_pg_url())
        bucket = {entry["path"]: obstore.get(objects.open_store(), entry["path"]).bytes() for entry in _objects()}
        before.admin.post("/v1/organizations", json={"name": "Later"}).raise_for_status()
    with settled(places().empty(tmp_path / "restored")):
        assert _objects() == []
        run("Restore PostgreSQL", BACKUP=backup, PG_URL=_pg_url())
        for path, content in bucket.items():
            obstore.put(objects.open_store(), path, content)
        with support.serving() as after:
            _check(after, key, worker_id)


def _pg_url() -> str:
    return get_settings().database.replace("+psycopg", "")


def _objects() -> list[Any]:
    return [entry for batch in obstore.list(objects.open_store()) for entry in batch]


def _fill(service: Service) -> tuple[str, str]:
    """Create an organization with a worker and an artifact. Returns the admin's key and the worker's id."""
    clinic = service.new_organization("Clinic")
    worker = service.new_worker(clinic, "gpu")
    support.upload(clinic.owner, FIRST, digest(FIRST))
    return service.admin_key, worker.id


def _check(after: Service, key: str, worker_id: str) -> None:
    admin = after.with_key(key)
    assert admin.get("/readyz").json()["checks"]["migrations"] == "ok"
    assert [worker["id"] for worker in admin.get("/v1/workers").json()["items"]] == [worker_id]
    assert admin.get(f"/v1/artifacts/{digest(FIRST)}").content == FIRST
    assert [one["name"] for one in admin.get("/v1/organizations").json()["items"]] == ["Clinic"]
