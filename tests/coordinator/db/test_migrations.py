"""Migrations: up and down, with rows, equal to the models, and from an installed wheel."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, insert, inspect, select

from coordinator.db import migration, sessions
from coordinator.db.engines import make_engine
from coordinator.db.sessions import reading, utcnow, writing
from coordinator.jobs import service as jobs
from coordinator.models import (
    Base,
    Client,
    Event,
    Federation,
    IdempotencyKey,
    Invitation,
    Job,
    Organization,
    Round,
    Worker,
    WorkerKey,
)
from coordinator.models.base import UtcDateTime, new_id
from coordinator.settings import get_settings
from federated.signed_statement import key_id
from tests.coordinator.clients import scene
from tests.support.places import Places, settled
from tests.support.service import Identity, forget_settings

REPOSITORY = Path(__file__).parents[3]
TABLES = set(Base.metadata.tables)


@pytest.fixture
def empty(engine: Places, tmp_path: Path) -> Iterator[Path]:
    """The data folder of a coordinator whose database nobody migrated."""
    with settled(engine.empty(tmp_path)):
        yield tmp_path


def tables() -> set[str]:
    engine = create_engine(get_settings().database)
    try:
        return set(inspect(engine).get_table_names()) - {"alembic_version"}
    finally:
        engine.dispose()


def federation_of(organization: Organization) -> Federation:
    return Federation(
        id=new_id("fed"), organization_id=organization.id, name="Tickets", state="draft",
        definition={"rounds": 3}, seed=2**62, created_at=utcnow(),
    )  # fmt: skip


def fill() -> datetime:
    """One row in every table that a migration could lose; returns a time that was stored."""
    now = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    bank = Organization(id="org_1", name="Bank", created_at=now)
    with writing() as session:
        session.add(bank)
        session.flush()
        federation = federation_of(bank)
        worker = Worker(
            id="wkr_1", organization_id="org_1", name="gpu", public_key="k", capabilities={}, created_at=now
        )
        session.add_all([federation, worker])
        session.flush()
        session.add(Event(federation_id=federation.id, at=now, type="created", data={"a": [1]}))
        session.add(
            Invitation(federation_id=federation.id, organization_id="org_1", state="accepted", created_at=now)
        )
    return now


class TestUpAndDown:
    def test_up_makes_all_tables_and_down_takes_them_away(self, empty: Path) -> None:
        migration.upgrade()
        assert tables() == TABLES
        migration.upgrade()
        migration.downgrade("base")
        assert tables() == set()
        migration.upgrade()
        assert tables() == TABLES

    def test_every_step_goes_up_and_down_alone(self, empty: Path) -> None:
        script = ScriptDirectory(str(migration.migrations_folder()))
        steps = [step.revision for step in reversed(list(script.walk_revisions()))]
        seen = []
        for step in steps:
            migration.upgrade(step)
            seen.append(tables())
            migration.downgrade("-1")
            assert tables() == (seen[-2] if len(seen) > 1 else set())
            migration.upgrade(step)
            assert tables() == seen[-1]
        assert seen[-1] == TABLES

    def test_rows_survive_the_steps_above_theirs(self, empty: Path) -> None:
        migration.upgrade("0001")
        with writing() as session:
            session.add(Organization(id="org_1", name="Bank", created_at=utcnow()))
        migration.upgrade()
        with writing() as session:
            session.add(federation_of(session.get_one(Organization, "org_1")))
        migration.downgrade("0001")
        migration.upgrade()
        with reading() as session:
            assert [row.name for row in session.scalars(select(Organization))] == ["Bank"]
            assert list(session.scalars(select(Federation))) == []

    def test_kept_answers_survive_the_steps_above_theirs_and_go_with_their_own(self, empty: Path) -> None:
        migration.upgrade("0003")
        now = utcnow()
        with writing() as session:
            session.add(
                IdempotencyKey(
                    caller="key_1", key="k", fingerprint="f", claim="c", claimed_until=now, status=201,
                    headers={"Location": "/v1/federations/fed_1"}, body="{}", expires_at=now,
                )
            )  # fmt: skip
        migration.upgrade()
        migration.downgrade("0003")
        with reading() as session:
            row = session.scalars(select(IdempotencyKey)).one()
            assert (row.headers, row.expires_at) == ({"Location": "/v1/federations/fed_1"}, now)
        migration.downgrade("0002")
        migration.upgrade()
        with reading() as session:
            assert list(session.scalars(select(IdempotencyKey))) == []

    def test_workers_enrolled_before_updates_were_signed_keep_their_keys(self, empty: Path) -> None:
        migration.upgrade("0003")
        public_key, now = Identity().public_key, utcnow()
        with writing() as session:
            session.add(Organization(id="org_1", name="Bank", created_at=now))
            session.flush()
            session.execute(
                insert(Worker.__table__).values(  # type: ignore[arg-type]
                    id="wkr_1",
                    organization_id="org_1",
                    name="gpu",
                    public_key=public_key,
                    capabilities={},
                    created_at=now,
                )
            )
        for _ in range(2):
            migration.upgrade()
            with reading() as session:
                key = session.scalars(select(WorkerKey)).one()
                assert (key.id, key.worker_id, key.public_key) == (key_id(public_key), "wkr_1", public_key)
                assert (key.created_at, key.retired_at) == (now, None)
            migration.downgrade("0003")
        assert "worker_keys" not in tables()

    def test_jobs_and_rounds_survive_the_columns_that_signing_added(self, empty: Path) -> None:
        migration.upgrade()
        with writing() as session:
            federation = scene.federation(session, scene.organization(session).id)
            round_ = scene.open_round(session, federation, notes={"0": "sha256:0"}, signature="{}")
            client = scene.client(session, federation, scene.worker(session, session.query(Organization).one()))
            (job,) = jobs.offer(session, federation, "describe", None, [jobs.JobRequest(client, seed=1)], utcnow())
            job.key_id = "ed25519:0"
        migration.downgrade("0003")
        migration.upgrade()
        with reading() as session:
            kept, again = session.get_one(Round, round_.id), session.get_one(Job, job.id)
            assert (kept.federation_id, kept.number, kept.notes, kept.signature) == (federation.id, 1, None, None)
            assert (again.client_id, again.seed, again.key_id) == (client.id, 1, None)

    def test_rows_survive_a_migration_that_has_nothing_to_do(self, data_folder: Path) -> None:
        stored = fill()
        migration.upgrade()
        with reading() as session:
            event = session.scalars(select(Event)).one()
            assert (event.at, event.data) == (stored, {"a": [1]})
            assert session.scalars(select(Federation)).one().seed == 2**62
            assert session.scalars(select(Invitation)).one().state == "accepted"

    def test_two_processes_may_migrate_at_once(self, empty: Path) -> None:
        command = [sys.executable, "-m", "coordinator", "migrate", "--data", str(empty)]
        running = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
        errors = [process.communicate(timeout=120)[1].decode() for process in running]
        assert [process.returncode for process in running] == [0, 0], errors
        assert tables() == TABLES


class TestHead:
    def test_a_migrated_database_is_at_head_and_an_older_one_is_not(self, empty: Path) -> None:
        migration.upgrade("0001")
        with reading() as session:
            assert not migration.at_head(session)
        migration.upgrade()
        with reading() as session:
            assert migration.at_head(session)


def differences(engine: Engine) -> list[object]:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": _same_type})
        found: list[object] = compare_metadata(context, Base.metadata)
        return found


def _same_type(context: object, inspected: object, declared: object, inspected_type: object, own: object) -> bool:
    return False if isinstance(own, UtcDateTime) else None  # type: ignore[return-value]


class TestModels:
    def test_the_migrations_make_what_the_models_say(self, data_folder: Path) -> None:
        assert differences(sessions.engine()) == []

    def test_the_comparison_finds_a_difference(self, data_folder: Path) -> None:
        with sessions.engine().begin() as connection:
            connection.exec_driver_sql("DROP INDEX ix_jobs_client_id")
        assert len(differences(sessions.engine())) == 1

    def test_every_constraint_has_the_name_the_models_give_it(self, data_folder: Path) -> None:
        inspector = inspect(sessions.engine())
        for table in Base.metadata.sorted_tables:
            declared = {constraint.name for constraint in table.foreign_key_constraints}
            assert {key["name"] for key in inspector.get_foreign_keys(table.name)} == declared
            assert inspector.get_pk_constraint(table.name)["name"] == table.primary_key.name

    def test_deleting_a_federation_takes_along_what_is_its_own(self, data_folder: Path) -> None:
        fill()
        with writing() as session:
            session.delete(session.scalars(select(Federation)).one())
        with reading() as session:
            for model in (Client, Event, Federation, Invitation, Job, Round):
                assert list(session.scalars(select(model))) == []
            assert len(list(session.scalars(select(Worker)))) == 1


class TestWheel:
    def test_it_carries_the_migrations_and_the_viewer_and_they_run_from_it(self, tmp_path: Path) -> None:
        build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
        subprocess.run([*build, "--wheel-dir", tmp_path, REPOSITORY], check=True, timeout=240)
        (wheel,) = tmp_path.glob("fedloom-*.whl")
        installed, data = tmp_path / "installed", tmp_path / "data"
        with zipfile.ZipFile(wheel) as archive:
            names = {name for name in archive.namelist() if name.startswith("coordinator/migrations/")}
            viewer = {name for name in archive.namelist() if name.startswith("coordinator/web/api_docs/")}
            archive.extractall(installed)
        folder = REPOSITORY / "coordinator/web/api_docs"
        files = {file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
        assert viewer == {file.relative_to(REPOSITORY).as_posix() for file in files}
        assert len(viewer) == 9
        own = {
            path.relative_to(REPOSITORY / "alembic").as_posix()
            for path in (REPOSITORY / "alembic").rglob("*")
            if path.suffix in (".py", ".mako")
        }
        assert names == {f"coordinator/migrations/{name}" for name in own}
        program = (
            "import coordinator; from coordinator.db import migration; "
            "from coordinator.db.sessions import reading; from coordinator.settings import get_settings; "
            "get_settings().data_folder.mkdir(); migration.upgrade(); session = reading().__enter__(); "
            "print(coordinator.__file__, migration.migrations_folder(), migration.at_head(session))"
        )
        environment = {**os.environ, "PYTHONPATH": str(installed), "FEDLOOM_DATA_FOLDER": str(data)}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment,
            cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        package = installed / "coordinator"
        assert done.stdout.split() == [str(package / "__init__.py"), str(package / "migrations"), "True"]


@pytest.mark.sqlite
def test_a_database_of_its_own_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLOOM_DATABASE_URL", f"sqlite:///{tmp_path / 'other.sqlite'}")
    forget_settings()
    migration.upgrade()
    engine = make_engine(get_settings().database)
    assert set(inspect(engine).get_table_names()) >= TABLES
    engine.dispose()
