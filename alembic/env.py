"""Alembic environment: the installation's database, and the tables of `coordinator.models`."""

from typing import Any

from sqlalchemy import event

from alembic import context
from coordinator.db.engines import BEGIN_IMMEDIATELY, make_engine
from coordinator.db.roles import grant_service
from coordinator.models import Base
from coordinator.settings import get_settings


def _leave_foreign_keys_alone(connection: Any, record: object) -> None:
    # SQLite alters a table by copying it. With foreign keys on, dropping the old one would delete referring rows.
    connection.execute("PRAGMA foreign_keys=OFF")


def run() -> None:
    """Runs all migrations in one transaction, one migrating process at a time."""
    engine = make_engine(get_settings().migration_database)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _leave_foreign_keys_alone)
    with engine.execution_options(**BEGIN_IMMEDIATELY).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtextextended('migration', 0))")
        context.configure(
            connection, target_metadata=Base.metadata, render_as_batch=True, transactional_ddl=True, compare_type=True
        )
        context.run_migrations()
        grant_service(connection)
        if engine.dialect.name == "sqlite":
            broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
            if broken is not None:
                raise RuntimeError(f"the migration leaves a row that refers to nothing: {tuple(broken)}")
    engine.dispose()


run()
