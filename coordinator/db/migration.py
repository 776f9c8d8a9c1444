"""Database migrations with Alembic, from a checkout or from an installed wheel.

Alembic is imported on first use: it takes longer to load than the web framework.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.orm import Session

if TYPE_CHECKING:
    from alembic.config import Config


def migrations_folder() -> Path:
    """`coordinator/migrations` in an installed wheel, `alembic/` beside the package in a checkout."""
    package = Path(__file__).parents[1]
    folders = (package / "migrations", package.parent / "alembic")
    for folder in folders:
        if (folder / "env.py").is_file():
            return folder
    raise FileNotFoundError(f"no migrations in {' or '.join(map(str, folders))}: the installation is broken")


def _configuration() -> "Config":
    from alembic.config import Config

    configuration = Config()
    configuration.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    return configuration


def upgrade(revision: str = "head") -> None:
    """Migrates the installation's database up to `revision` if needed. Creates a missing SQLite file."""
    from alembic import command

    command.upgrade(_configuration(), revision)


def downgrade(revision: str) -> None:
    """Migrates the installation's database down to `revision`, or to nothing with "base"."""
    from alembic import command

    command.downgrade(_configuration(), revision)


@lru_cache(maxsize=1)
def head_revision() -> str:
    """The newest revision of this version."""
    from alembic.script import ScriptDirectory

    return str(ScriptDirectory.from_config(_configuration()).get_current_head())


def at_head(session: Session) -> bool:
    """Whether the database is at this version's head revision: no migration is missing, none is of a later version.

    Raises an error of SQLAlchemy if it was never migrated.
    """
    return list(session.scalars(text("SELECT version_num FROM alembic_version"))) == [head_revision()]
