"""Which federations the owner of this node has approved: one small file in the data folder."""

import json
from datetime import UTC, datetime
from pathlib import Path

from worker_agent.durable import file_name, write_file
from worker_agent.errors import ConfigurationError

_FILE = "approved.json"


def approved(folder: Path) -> frozenset[str]:
    """Ids of approved federations. Raises ConfigurationError for a damaged file."""
    return frozenset(_read(folder / _FILE))


def approve(folder: Path, federation_id: str) -> None:
    """Approve a federation; a running agent honours it from the next job on."""
    folder.mkdir(parents=True, exist_ok=True)
    known = _read(folder / _FILE)
    known.setdefault(file_name(federation_id), datetime.now(UTC).isoformat(timespec="seconds"))
    write_file(folder / _FILE, json.dumps(known, indent=2, sort_keys=True).encode())


def _read(path: Path) -> dict[str, str]:
    try:
        known = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigurationError(f"{path} is damaged: {error}") from None
    if not isinstance(known, dict):
        raise ConfigurationError(f"{path} is damaged: it is not an object")
    return known
