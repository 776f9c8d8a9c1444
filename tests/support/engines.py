"""The big engines as real processes of the tests' own: PostgreSQL, Redis, and an S3 server.

Each lives in a temporary folder and on a port that the kernel chose and that a restart keeps. The machine's own
services are never touched. What is committed survives `kill` and `restart` of PostgreSQL; Redis comes back empty, as
it keeps nothing of value; the S3 server (moto) keeps its objects in memory and loses them with its process.

PostgreSQL runs with fsync off: a commit is in the kernel before it is answered (`synchronous_commit` stays on), so
it survives SIGKILL of every process, which is what the tests do; only a power cut could lose it.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
import psycopg
import redis
from psycopg import sql

from coordinator.addresses import free_port
from tests.support import rows
from tests.support.service import TLS

START_SECONDS = 60.0
POLLING_SECONDS = 0.02
REDIS_DATABASES = 1024
_SUPERUSER = "postgres"
# A server is told when the thread that started it ends: this one ends with the interpreter, however that comes about.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engines")


class Missing(Exception):
    """A program that a server needs is not installed; the text says which."""


def program(name: str, *, beside: str = "") -> str:
    """Path of a program in PATH or, failing that, of the newest that fits the pattern `beside`. Raises Missing."""
    found = shutil.which(name)
    if found is not None:
        return found
    versions = sorted(Path("/").glob(f"{beside}/{name}"), key=lambda path: path.stat().st_mtime) if beside else []
    if not versions:
        raise Missing(f"no {name} in PATH" + (f" or /{beside}" if beside else ""))
    return str(versions[-1])


class Server(ABC):
    """A process that tests start, stop, kill and start again. Does not run when it is made."""

    name: str
    stop_signal = signal.SIGTERM
    user: str | None = None

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"fedloom-{self.name}-"))
        self.log = self.folder / "log"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        if self.user is not None:
            shutil.chown(self.folder, self.user, pwd.getpwnam(self.user).pw_gid)

    @abstractmethod
    def command(self) -> list[str]:
        """Program and arguments."""

    @abstractmethod
    def ask(self) -> None:
        """Raises an error unless the server answers."""

    def start(self) -> None:
        """Starts the process and waits until it answers."""
        deadline = time.monotonic() + START_SECONDS
        self.process = self._spawn(self.command())
        while (problem := self._problem()) is not None:
            if self.process.poll() is not None:  # its port may have been lent to somebody's connection for a moment
                self.process = self._spawn(self.command())
            assert time.monotonic() < deadline, f"{self.name} does not answer: {problem!r}\n{self.text_of_log()}"
            time.sleep(POLLING_SECONDS)

    def stop(self) -> None:
        """Ends it as a service manager would."""
        assert self.process is not None
        self.process.send_signal(self.stop_signal)
        self.process.wait(START_SECONDS)

    def kill(self) -> None:
        """SIGKILL to the process and all its children; nothing of it goes on."""
        assert self.process is not None
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait(START_SECONDS)
        psutil.wait_procs(family, START_SECONDS)

    def restart(self) -> None:
        """Ends it, if it runs, and starts it again at the same place."""
        if self.running():
            self.stop()
        self.start()

    def running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def close(self) -> None:
        """Leaves nothing of it behind."""
        if self.running():
            self.kill()
        shutil.rmtree(self.folder)

    def text_of_log(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def _problem(self) -> Exception | None:
        try:
            self.ask()
        except Exception as error:  # every library has its own
            return error
        return None

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        group = None if self.user is None else pwd.getpwnam(self.user).pw_gid
        with self.log.open("ab") as log:
            return _starter.submit(
                subprocess.Popen, [program("setpriv"), "--pdeathsig=KILL", *command], stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, cwd=self.folder, user=self.user, group=group,
                extra_groups=None if self.user is None else [],
            ).result()  # fmt: skip


class PostgresServer(Server):
    """PostgreSQL with databases made by `create`. As root it runs as the user that the package made."""

    name = "postgresql"
    stop_signal = signal.SIGINT  # ends the connections that are open
    user = _SUPERUSER if os.geteuid() == 0 else None

    def __init__(self) -> None:
        binaries = Path(program("postgres", beside="usr/lib/postgresql/*/bin")).resolve().parent
        super().__init__()
        self._binaries, self._data = binaries, self.folder / "data"
        initdb = [str(binaries / "initdb"), "--pgdata", str(self._data), "--username", _SUPERUSER, "--auth=trust"]
        made = self._spawn([*initdb, "--no-sync", "--encoding=UTF8", "--locale=C"])
        assert made.wait(START_SECONDS) == 0, self.text_of_log()

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off",
            "full_page_writes": "off", "max_connections": 300, "shared_buffers": "64MB", "autovacuum": "off",
        }  # fmt: skip
        told = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(self._binaries / "postgres"), "-D", str(self._data), *told]

    def ask(self) -> None:
        self.execute("SELECT 1")

    def url(self, database: str) -> str:
        """SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://{_SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str, template: str = "template0") -> str:
        """Makes a database, as a copy of another that nobody is connected to, and returns its URL."""
        self.execute("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY", database, template)
        return self.url(database)

    def made_new(self, database: str, template: tuple[str, Mapping[str, str]]) -> bool:
        """Whoever is connected goes, and all rows but those of the template.

        False where it could not, or the schema is not the template's any more.
        """
        schema, first_rows = template
        try:
            with self._connected(database) as connection:
                if not rows.delete_all(connection, schema):
                    return False
                rows.put_back(connection, first_rows)
                return True
        except psycopg.Error:
            return False

    def template(self, database: str) -> tuple[str, Mapping[str, str]]:
        """What `made_new` makes others like: a digest of the schema, and the rows."""
        with self._connected(database) as connection:
            return rows.schema_of(connection), rows.first_rows(connection)

    def drop(self, database: str) -> None:
        """Takes the database away, whoever is connected to it."""
        self.execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", database)

    def execute(self, statement: str, *names: str) -> None:
        """Runs a statement in the database `postgres`, with the quoted names in its braces."""
        query = sql.SQL(statement).format(*map(sql.Identifier, names))  # type: ignore[arg-type]
        with self._connected("postgres") as connection:
            connection.execute(query)

    def _connected(self, database: str) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(host="127.0.0.1", port=self.port, user=_SUPERUSER, dbname=database, autocommit=True)


class RedisServer(Server):
    """Redis that writes nothing to disk, with many databases: one for each test."""

    name = "redis"

    def __init__(self) -> None:
        self._program = program("redis-server")
        super().__init__()
        self._given = 0

    def command(self) -> list[str]:
        arguments = {"bind": "127.0.0.1", "port": self.port, "dir": self.folder, "save": "", "appendonly": "no"}
        told = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
        return [self._program, *told, "--databases", str(REDIS_DATABASES)]

    def ask(self) -> None:
        with self.client() as client:
            client.ping()

    def url(self, database: int = 0) -> str:
        """URL of one of the databases."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def empty(self) -> str:
        """URL of a database with nothing in it, and of nobody else until all have had their turn."""
        self._given = (self._given + 1) % REDIS_DATABASES
        with self.client(self._given) as client:
            client.flushdb()
        return self.url(self._given)

    def client(self, database: int = 0) -> "redis.Redis[Any]":
        """A connection to look and to break things with."""
        return redis.Redis.from_url(self.url(database))


class S3Server(Server):
    """An S3 server with one bucket; `environment` lets obstore find it."""

    name = "s3"
    bucket = "fedloom"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(self.port)]

    def start(self) -> None:
        super().start()
        self.client().create_bucket(Bucket=self.bucket)

    def ask(self) -> None:
        httpx.get(f"{self.endpoint}/moto-api/", trust_env=False, verify=TLS).raise_for_status()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What the store's client reads beside its URL."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests",
        }  # fmt: skip

    def url(self, prefix: str) -> str:
        """URL of a folder in the bucket."""
        return f"s3://{self.bucket}/{prefix}"

    def client(self) -> Any:
        """A client of another make, to look and to break things with."""
        named = {"region_name": "us-east-1", "aws_access_key_id": "tests", "aws_secret_access_key": "tests"}
        return boto3.client("s3", endpoint_url=self.endpoint, **named)
