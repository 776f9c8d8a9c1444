"""The two roles of deploy/postgres/roles.sql: the service runs with the lesser one, which cannot change tables."""

import os
import subprocess
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

from coordinator import audit
from coordinator.db import migration
from coordinator.db.sessions import reading
from coordinator.settings import get_settings
from tests.deploy.deployed import DEPLOY
from tests.support.engines import PostgresServer, program
from tests.support.federation_rig import FederationRig
from tests.support.places import Environment, Places, Servers, within
from tests.support.service import serving

pytestmark = pytest.mark.engines
PASSWORDS = {"FEDLOOM_OWNER_PASSWORD": "for-the-tables", "FEDLOOM_PASSWORD": "for-the-rows"}


def make_roles(server: PostgresServer) -> None:
    """Run roles.sql as described in its first lines."""
    command = [program("psql"), "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1"]
    superuser = server.url("postgres").replace("+psycopg", "")
    environment = {"PATH": os.environ["PATH"], **PASSWORDS}
    subprocess.run(
        [*command, "--file", str(DEPLOY / "postgres/roles.sql"), superuser], env=environment, check=True, timeout=60
    )


@pytest.fixture(scope="module")
def environment(engine: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """The environment of a service with the lesser role, on a database migrated by the role of the owner."""
    servers = engine
    assert isinstance(servers, Servers)
    make_roles(servers.postgres)
    environment = servers.empty(tmp_path_factory.mktemp("roles") / "data")
    servers.leave(environment)
    environment["FEDLOOM_DATABASE_URL"] = servers.postgres.url("fedloom").replace("postgres@", "fedloom@")
    owner = servers.postgres.url("fedloom").replace("postgres@", "fedloom_owner@")
    with within({**environment, "FEDLOOM_MIGRATION_DATABASE_URL": owner}):
        migration.upgrade()
    yield environment
    servers.postgres.drop("fedloom")
    for role in ("fedloom", "fedloom_owner"):
        servers.postgres.execute("DROP ROLE {}", role)


@pytest.fixture
def connection(environment: Environment) -> Iterator[psycopg.Connection]:
    """A connection with the role of the running processes."""
    url = environment["FEDLOOM_DATABASE_URL"].replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def test_a_federation_runs_from_beginning_to_end(environment: Environment) -> None:
    with within(environment), serving() as service:
        rig = FederationRig(service)
        rig.running()
        rig.play(2)
        assert rig.show()["state"] == "completed"
        rig.reconcile()
        ready = service.anonymous.get("/readyz").json()["checks"]
        assert (ready["database"], ready["migrations"]) == ("ok", "ok")
        response = rig.owner.owner.delete(rig.path())
        assert response.status_code == 204, response.text
        with reading() as session:
            assert list(audit.verify(session))
        assert "fedloom@" in get_settings().database


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TRIGGER audit_entries_no_update ON audit_entries",
        "ALTER TABLE audit_entries DISABLE TRIGGER ALL",
        "ALTER TABLE audit_entries DISABLE TRIGGER audit_entries_no_delete",
        "CREATE OR REPLACE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
        "SET session_replication_role = replica",
        "UPDATE audit_entries SET hash = 'x'",
        "DELETE FROM audit_entries",
        "TRUNCATE audit_entries",
        "DROP TABLE audit_entries",
        "ALTER TABLE organizations ADD COLUMN more text",
        "DROP TABLE organizations",
        "TRUNCATE organizations",
        "CREATE TABLE others (id text)",
        "CREATE SCHEMA others",
        "UPDATE alembic_version SET version_num = '0001'",
        "SET ROLE fedloom_owner",
        "COPY organizations TO PROGRAM 'true'",
    ],
)
def test_what_would_change_a_table_or_the_log_is_refused(connection: psycopg.Connection, statement: str) -> None:
    with pytest.raises(InsufficientPrivilege):
        connection.execute(statement)  # type: ignore[arg-type]


def test_another_migration_leaves_the_rights_as_they_are(environment: Environment) -> None:
    def rights() -> set[tuple[str, str]]:
        query = (
            "SELECT table_name, privilege_type FROM information_schema.role_table_grants WHERE grantee = 'fedloom'"
        )
        with psycopg.connect(owner.replace("+psycopg", "")) as connection:
            return {(row[0], row[1]) for row in connection.execute(query)}

    owner = environment["FEDLOOM_DATABASE_URL"].replace("fedloom@", "fedloom_owner@")
    before = rights()
    assert {kind for table, kind in before if table == "audit_entries"} == {"SELECT", "INSERT"}
    with within({**environment, "FEDLOOM_MIGRATION_DATABASE_URL": owner}):
        migration.downgrade("-1")
        migration.upgrade()
    assert rights() == before
