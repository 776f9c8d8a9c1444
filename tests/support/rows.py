"""Rows of a whole PostgreSQL database, deleted at once: that costs a tenth of making another database."""

from typing import Any

import psycopg

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


def delete_all(connection: psycopg.Connection[tuple[Any, ...]], schema: str) -> bool:
    """Ends all other connections and deletes all rows. False, and nothing is deleted, if the schema is another."""
    connection.execute("SET lock_timeout = '2s'")
    connection.execute("SET session_replication_role = replica")  # no trigger refuses
    connection.execute(_END_OTHERS)
    if schema_of(connection) != schema:
        return False
    connection.execute(_EMPTY)
    return True
