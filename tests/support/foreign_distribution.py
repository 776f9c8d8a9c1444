"""Distributions of others, as pip would have installed them: a package and its entry point."""

import shutil
from pathlib import Path

from federated.registry import ENTRY_POINT_GROUP

FEDPROX = Path(__file__).parents[2] / "examples/fedprox/fedprox"


def install(folder: Path, name: str, entry: str, package: dict[str, str] | Path) -> None:
    """Installs the distribution `name` with the entry point `entry` and a package, as files or to be copied."""
    metadata = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{entry}\n")
    root = folder / entry.partition("=")[2].strip()
    if isinstance(package, Path):
        shutil.copytree(package, root, ignore=shutil.ignore_patterns("__pycache__"))
        return
    for file, text in package.items():
        root.mkdir(exist_ok=True)
        (root / file).write_text(text)
