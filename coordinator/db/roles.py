"""Database roles: an owner that migrates the tables, and a service role with fewer rights.

With `migration_database_url` set to the owner's URL, a migration grants the role of `database_url` the rights that
the running processes need. They cannot alter tables. They can append to the audit log but neither change nor delete
its entries.
"""

from sqlalchemy import Connection, inspect, make_url

from coordinator.models import AuditEntry, Base
from coordinator.settings import get_settings

_ALL_RIGHTS = "SELECT, INSERT, UPDATE, DELETE"
_RIGHTS = {AuditEntry.__tablename__: "SELECT, INSERT", "alembic_version": "SELECT"}
"""Rights on tables on which the service has fewer than `_ALL_RIGHTS`."""


def grant_service(connection: Connection) -> None:
    """Grants the service's role its rights on the tables and revokes all others.

    Does nothing if the service's own role migrates, or on SQLite.
    """
    service = make_url(get_settings().database).username
    if connection.dialect.name != "postgresql" or service in (None, connection.engine.url.username):
        return
    quote = connection.dialect.identifier_preparer.quote_identifier
    role = quote(service)
    inspector = inspect(connection)
    tables = {*Base.metadata.tables, *_RIGHTS} & set(inspector.get_table_names())
    connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {quote(str(inspector.default_schema_name))} TO {role}")
    for table in sorted(tables):
        connection.exec_driver_sql(f"REVOKE ALL ON {quote(table)} FROM {role}")
        connection.exec_driver_sql(f"GRANT {_RIGHTS.get(table, _ALL_RIGHTS)} ON {quote(table)} TO {role}")
    for sequence in inspector.get_sequence_names():
        if sequence.startswith(tuple(f"{table}_" for table in tables)):  # of an autoincrement column
            connection.exec_driver_sql(f"GRANT USAGE, SELECT ON SEQUENCE {quote(sequence)} TO {role}")
