"""Distributions of others, as pip would have installed them: a package and its entry point."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from federated import registry

FEDPROX = Path(__file__).parents[2] / "examples/fedprox/fedprox"
Install = Callable[[str, str, dict[str, str] | Path], None]


def install(folder: Path, name: str, entry: str, package: dict[str, str] | Path) -> None:
    """Installs the distribution `name` with the entry point `entry` and a package, as files or to be copied."""
    metadata = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{registry.ENTRY_POINT_GROUP}]\n{entry}\n")
    root = folder / entry.partition("=")[2].strip()
    if isinstance(package, Path):
        shutil.copytree(package, root, ignore=shutil.ignore_patterns("__pycache__"))
        return
    for file, text in package.items():
        root.mkdir(exist_ok=True)
        (root / file).write_text(text)


@contextmanager
def installing(folder: Path) -> Iterator[Install]:
    """A function that installs distributions into `folder`, which is on the path while the block runs."""
    modules = set(sys.modules)

    def add(name: str, entry: str, package: dict[str, str] | Path) -> None:
        install(folder, name, entry, package)
        registry.reload()

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield add
    registry.reload()
    for module in set(sys.modules) - modules:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(folder)):
            del sys.modules[module]
