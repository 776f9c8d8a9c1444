"""Takes a federation away with all its bytes, so that the next one transfers and makes everything again."""

from datetime import timedelta
from pathlib import Path

from coordinator.artifacts import service as artifacts
from coordinator.db.sessions import utcnow
from tests.support.nodes import Consortium
from tests.support.places import within

LATER = timedelta(days=8)
"""By when every upload has expired, and nothing is too young to be collected."""


def forget(nodes: Consortium, federation_id: str) -> None:
    """Deletes an ended federation, its artifacts, and what agents and background processes have copied of them."""
    nodes.owner.http.delete(f"/v1/federations/{federation_id}").raise_for_status()
    environment = nodes.installation.environment
    with within({name: value for name, value in environment.items() if name.startswith(("FEDLOOM_", "AWS_"))}):
        artifacts.collect(utcnow() + LATER)
    for folder in (nodes.installation.folder, *(node.folder / "state" for node in nodes.nodes)):
        _empty(folder / "cache")


def _empty(cache: Path) -> None:
    for path in cache.rglob("*"):
        if path.is_file():
            path.unlink(missing_ok=True)
