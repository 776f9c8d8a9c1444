"""Storage of the coordinators under test: files on this machine, or PostgreSQL, Redis and S3.

The environment variable FEDLOOM_TESTS_ON selects it: `sqlite` (files, the default) or `postgresql` (PostgreSQL, Redis
and S3, in servers that this process starts). The same tests run on both.
"""

import atexit
import itertools
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from coordinator.addresses import free_port
from coordinator.db import migration
from coordinator.settings import get_settings
from tests.support.engines import Missing, PostgresServer, RedisServer, S3Server
from tests.support.service import forget_settings, leave_settings

VARIABLE = "FEDLOOM_TESTS_ON"
_TEMPLATE = "migrated"
_MOST_USES = 40
"""Of one database: to empty it costs a tenth of another, but what was deleted stays in its files."""

Environment = dict[str, str]
"""Settings of a coordinator by the names of their environment variables."""


class Files:
    """SQLite, the filesystem queue and a folder of artifacts, all of them in the data folder."""

    @cached_property
    def _template(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="fedloom-template-"))
        atexit.register(shutil.rmtree, folder)
        _migrate(self.empty(folder))
        return folder / "coordinator.sqlite"

    def empty(self, folder: Path) -> Environment:
        """For a coordinator over `folder` whose database nobody migrated yet."""
        folder.mkdir(parents=True, exist_ok=True)
        return {"FEDLOOM_DATA_FOLDER": str(folder)}

    def migrated(self, folder: Path) -> Environment:
        """For a coordinator over `folder` whose database is at the head of the real migrations."""
        environment = self.empty(folder)
        shutil.copy(self._template, folder)
        return environment

    def for_up(self, folder: Path) -> Environment:
        """For `coordinator up`, which migrates these by itself."""
        return self.empty(folder)

    def leave(self, environment: Environment) -> None:
        """What was given is no longer needed: the folder is the test's own."""


class Servers:
    """A PostgreSQL database, a Redis database and a prefix in the bucket; the data folder is for copies alone."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self.redis, self.postgres, self.s3 = RedisServer(), PostgresServer(), S3Server()
        for server in (self.postgres, self.redis, self.s3):
            atexit.register(server.close)
            server.start()
        self.signing_key = self.postgres.folder / "signing-key.pem"
        self.signing_key.write_bytes(private_pem(ec.generate_private_key(ec.SECP256R1())))
        environment = self.empty(self.postgres.folder)
        _migrate(environment)
        self.postgres.execute("ALTER DATABASE {} RENAME TO {}", _database(environment), _TEMPLATE)
        self._as_migrated = self.postgres.template(_TEMPLATE)
        self._free: list[str] = []
        self._uses: Counter[str] = Counter()

    def empty(self, folder: Path) -> Environment:
        """For a coordinator over `folder` whose database nobody migrated yet."""
        return self._place(folder, self._created("template0"))

    def migrated(self, folder: Path) -> Environment:
        """For a coordinator over `folder` whose database is at the head of the real migrations."""
        name = self._free.pop() if self._free else self._created(_TEMPLATE)
        self._uses[name] += 1
        return self._place(folder, name)

    def for_up(self, folder: Path) -> Environment:
        """For `coordinator up`, which leaves the migration of such a database to its operator."""
        return self.migrated(folder)

    def _created(self, template: str) -> str:
        name = f"tests{next(self._numbers)}"
        self.postgres.create(name, template)
        return name

    def _place(self, folder: Path, database: str) -> Environment:
        folder.mkdir(parents=True, exist_ok=True)
        return {
            "FEDLOOM_DATA_FOLDER": str(folder),
            "FEDLOOM_DATABASE_URL": self.postgres.url(database),
            "FEDLOOM_BROKER_URL": self.redis.empty(),
            "FEDLOOM_STORE_URL": self.s3.url(f"store{next(self._numbers)}"),
            "FEDLOOM_SIGNING_KEY": str(self.signing_key),
            **self.s3.environment,
        }

    def leave(self, environment: Environment) -> None:
        """What was given is no longer needed: the database is emptied for the next test, a few times, or goes."""
        name = _database(environment)
        if not self.postgres.running():
            return
        if 0 < self._uses[name] < _MOST_USES and self.postgres.made_new(name, self._as_migrated):
            self._free.append(name)
        else:
            self.postgres.drop(name)


Places = Files | Servers


def private_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    """The private key as a coordinator's file holds it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _database(environment: Environment) -> str:
    return environment["FEDLOOM_DATABASE_URL"].rpartition("/")[2]


def _migrate(environment: Environment) -> None:
    with within(environment):
        migration.upgrade()


@contextmanager
def within(environment: Environment) -> Iterator[None]:
    """This process and those it starts work in a place."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        forget_settings()
        yield
    leave_settings()


@contextmanager
def settled(environment: Environment) -> Iterator[None]:
    """This process and those it starts work in a place, which is given back afterwards."""
    owner = places()
    with within(environment):
        yield
    owner.leave(environment)


def lose_broker(patch: pytest.MonkeyPatch) -> None:
    """From now on this process reaches no broker."""
    if get_settings().embedded:
        _block(get_settings().queue_folder)
    else:
        patch.setenv("FEDLOOM_BROKER_URL", f"redis://127.0.0.1:{free_port()}/0")
        forget_settings()


def lose_store(patch: pytest.MonkeyPatch) -> None:
    """From now on this process reaches no store."""
    if get_settings().store_url is None:
        _block(get_settings().data_folder / "artifacts")
    else:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        forget_settings()


def _block(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("a file where a folder should be")


def on_servers() -> bool:
    """Whether this run is the one on the big engines."""
    return os.environ.get(VARIABLE, "sqlite") == "postgresql"


_refusals: list[str] = []


@contextmanager
def refused(test: str) -> Iterator[None]:
    """Meanwhile `places` are refused to this test, which lacks the fixture `engine`."""
    _refusals.append(test)
    try:
        yield
    finally:
        _refusals.remove(test)


def places() -> Places:
    """The places of this process; skips the test if a server it needs is not installed.

    A test that gets them has the fixture `engine`, by which those that need no engine are told from it.
    """
    assert not _refusals, f"{_refusals[-1]} uses an engine: it or its fixture has to request `engine`"
    return _opened()


@lru_cache(maxsize=1)
def _opened() -> Places:
    if not on_servers():
        return Files()
    try:
        return Servers()
    except Missing as missing:
        pytest.skip(str(missing))
