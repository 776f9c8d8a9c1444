"""A temporary PostgreSQL server for a benchmark, with the durability of the default settings."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from coordinator.addresses import free_port

_SUPERUSER = "postgres"
_START_SECONDS = 60.0
_SETTINGS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": 200}


class Missing(Exception):
    """PostgreSQL is not installed."""


class Postgres:
    """A context with a server on a free port. Under root it runs as the user of the PostgreSQL package."""

    def __init__(self) -> None:
        self._binaries = _binaries()
        self._user = _SUPERUSER if os.geteuid() == 0 else None

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="benchmark-postgresql-"))
        if self._user is not None:
            shutil.chown(self._folder, self._user, pwd.getpwnam(self._user).pw_gid)
        self._port = free_port()
        data = str(self._folder / "data")
        initialization = self._spawn(
            "initdb", "--pgdata", data, "--username", _SUPERUSER, "--auth=trust", "--encoding=UTF8"
        )
        if initialization.wait(_START_SECONDS):
            raise SystemExit((self._folder / "log").read_text(encoding="utf-8", errors="replace"))
        settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
        self._server = self._spawn("postgres", "-D", data, "-p", str(self._port), *settings)
        self._wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.send_signal(signal.SIGINT)  # a fast shutdown, which closes open connections
        self._server.wait(_START_SECONDS)
        shutil.rmtree(self._folder)

    @property
    def pid(self) -> int:
        """Process id of the server, whose backends are its children."""
        return self._server.pid

    def create(self, database: str) -> str:
        """Create an empty database and return its SQLAlchemy URL."""
        self._execute(f'CREATE DATABASE "{database}"')
        return f"postgresql+psycopg://{_SUPERUSER}@127.0.0.1:{self._port}/{database}"

    def _execute(self, statement: str) -> None:
        with psycopg.connect(
            host="127.0.0.1", port=self._port, user=_SUPERUSER, dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(statement.encode())

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._execute("SELECT 1")
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._server.poll() is not None:
                    raise
            time.sleep(0.05)

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        group = None if self._user is None else pwd.getpwnam(self._user).pw_gid
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [str(self._binaries / program), *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                cwd=self._folder, user=self._user, group=group, extra_groups=None if self._user is None else [],
            )  # fmt: skip


def _binaries() -> Path:
    program = shutil.which("postgres")
    if program is not None:
        return Path(program).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not versions:
        raise Missing("PostgreSQL is not installed: no postgres in PATH or /usr/lib/postgresql")
    return versions[-1].parent
