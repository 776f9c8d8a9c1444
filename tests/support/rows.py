"""Rows of a whole PostgreSQL database, deleted at once: that costs a tenth of making another database."""

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg import sql

_END_OTHERS = """
    SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
_SCHEMA = """
    SELECT md5(string_agg(line, ';' ORDER BY line)) FROM (
        SELECT concat_ws(' ', attrelid::regclass, attname, atttypid, attnotnull) AS line FROM pg_attribute
        JOIN pg_class ON pg_class.oid = attrelid WHERE relnamespace = 'public'::regnamespace AND attnum > 0
        UNION ALL SELECT concat_ws(' ', tgrelid::regclass, tgname, tgenabled) FROM pg_trigger WHERE NOT tgisinternal
    ) AS lines
"""
_TABLES = """
    SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
    AND relname <> 'alembic_version' ORDER BY relname
"""
_EMPTY = """
    DO $$ DECLARE one record; BEGIN
        FOR one IN SELECT quote_ident(relname) AS name, relkind FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND relname <> 'alembic_version' AND relkind IN ('r', 'S')
        LOOP
            EXECUTE CASE one.relkind WHEN 'r' THEN 'DELETE FROM ' || one.name
                ELSE 'ALTER SEQUENCE ' || one.name || ' RESTART' END;
        END LOOP;
    END $$
"""


def schema_of(connection: psycopg.Connection[tuple[Any, ...]]) -> str:
    """A digest of the database's columns and triggers."""
    row = connection.execute(_SCHEMA).fetchone()
    assert row is not None
    return str(row[0])


def first_rows(connection: psycopg.Connection[tuple[Any, ...]]) -> dict[str, str]:
    """The rows that migrations wrote, as JSON by table."""
    found = {}
    for (table,) in connection.execute(_TABLES).fetchall():
        row = connection.execute(sql.SQL("SELECT json_agg(one)::text FROM {} AS one").format(sql.Identifier(table)))
        if (told := row.fetchone()) is not None and told[0] is not None:
            found[table] = str(told[0])
    return found


def put_back(connection: psycopg.Connection[tuple[Any, ...]], rows: Mapping[str, str]) -> None:
    """Writes rows as `first_rows` gives them."""
    for table, told in rows.items():
        statement = sql.SQL("INSERT INTO {0} SELECT * FROM json_populate_recordset(NULL::{0}, %s)")
        connection.execute(statement.format(sql.Identifier(table)), [told])


def delete_all(connection: psycopg.Connection[tuple[Any, ...]], schema: str) -> bool:
    """Ends all other connections and deletes all rows. False, and nothing is deleted, if the schema is another."""
    connection.execute("SET lock_timeout = '2s'")
    connection.execute("SET session_replication_role = replica")  # no trigger refuses
    connection.execute(_END_OTHERS)
    if schema_of(connection) != schema:
        return False
    connection.execute(_EMPTY)
    return True
