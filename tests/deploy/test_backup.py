"""The guide's commands for backup and restore on one machine, run as they stand there."""

import os
import re
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

from tests.architecture.sizes import ROOT
from tests.support import service as support
from tests.support.service import Service

FIRST, LATER = b"kept" * 1000, b"after the backup"


def commands(title: str) -> str:
    """The block below `title` in the guide."""
    text = (ROOT / "docs/operators.md").read_text("utf-8")
    found = re.search(rf"\*\*{title}\.\*\*.*?```bash\n(.*?)```", text, flags=re.DOTALL)
    assert found is not None
    return found[1]


def run(title: str, data: Path, backup: Path) -> None:
    environment = {**os.environ, "DATA": str(data), "BACKUP": str(backup)}
    subprocess.run(["bash", "-euo", "pipefail", "-c", commands(title)], env=environment, check=True)  # noqa: S607


def digest(content: bytes) -> str:
    return "sha256:" + sha256(content).hexdigest()


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    return tmp_path / "backup"


def test_what_was_there_at_the_backup_is_there_after_a_restore(data_folder: Path, backup: Path) -> None:
    with support.serving() as before:
        key = before.admin_key
        clinic = before.new_organization("Clinic")
        worker = before.new_worker(clinic, "gpu")
        support.upload(clinic.owner, FIRST, digest(FIRST))
        run("Back up", data_folder, backup)
        support.upload(clinic.owner, LATER, digest(LATER))
    shutil.rmtree(data_folder)
    run("Restore", data_folder, backup)
    support.forget_settings()
    with support.serving() as after:
        _check(after, key, worker.id)


def _check(after: Service, key: str, worker_id: str) -> None:
    admin = after.with_key(key)
    assert admin.get("/readyz").json()["checks"]["migrations"] == "ok"
    assert [worker["id"] for worker in admin.get("/v1/workers").json()["items"]] == [worker_id]
    assert admin.get(f"/v1/artifacts/{digest(FIRST)}").content == FIRST
    assert admin.get(f"/v1/artifacts/{digest(LATER)}").status_code == 404
