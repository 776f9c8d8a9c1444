"""Algorithms for tests alone: a test puts this folder beside the real ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import federated.algorithms
from federated import registry


@contextmanager
def installed() -> Iterator[None]:
    """The algorithms of this folder are found like any other while the block runs."""
    folders = federated.algorithms.__path__
    folders.append(str(Path(__file__).parent))
    registry.reload()
    try:
        yield
    finally:
        folders.remove(str(Path(__file__).parent))
        registry.reload()
