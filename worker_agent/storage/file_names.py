"""Names of files and folders after ids that come from outside."""

import re

from worker_agent.errors import NotUnderstood

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


def file_name(identifier: str) -> str:
    """The id, if it is a valid file name. Raises NotUnderstood, since ids come from outside."""
    if _ID.fullmatch(identifier) is None:
        raise NotUnderstood(f"the id {identifier[:140]!r} cannot name a file")
    return identifier
