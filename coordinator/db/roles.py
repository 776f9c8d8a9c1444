"""Database roles: one owns the tables and migrates them, a lesser one is the service's.

With `migration_database_url` set to the owner's, a migration gives the role of `database_url` what the running
processes need: they change no table, and add entries to the audit log that they can neither change nor delete.
"""

from sqlalchemy import Connection, inspect, make_url

from coordinator.models import AuditEntry, Base
from coordinator.settings import get_settings

_ALL = "SELECT, INSERT, UPDATE, DELETE"
_LESS = {AuditEntry.__tablename__: "SELECT, INSERT", "alembic_version": "SELECT"}


def grant_service(connection: Connection) -> None:
    """Gives the service's role its rights on the tables, and takes those that it has beyond them.

    Does nothing if the service migrates as itself, or on SQLite.
    """
    service = make_url(get_settings().database).username
    if connection.dialect.name != "postgresql" or service in (None, connection.engine.url.username):
        return
    quote = connection.dialect.identifier_preparer.quote_identifier
    role = quote(service)
    inspector = inspect(connection)
    tables = {*Base.metadata.tables, *_LESS} & set(inspector.get_table_names())
    connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {quote(str(inspector.default_schema_name))} TO {role}")
    for table in sorted(tables):
        connection.exec_driver_sql(f"REVOKE ALL ON {quote(table)} FROM {role}")
        connection.exec_driver_sql(f"GRANT {_LESS.get(table, _ALL)} ON {quote(table)} TO {role}")
    for sequence in inspector.get_sequence_names():
        if sequence.startswith(tuple(f"{table}_" for table in tables)):  # of a column that counts
            connection.exec_driver_sql(f"GRANT USAGE, SELECT ON SEQUENCE {quote(sequence)} TO {role}")
