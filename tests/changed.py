"""Tests of what a change touches: `python -m tests.changed [REVISION]` prints their paths, for `make test-fast`.

A changed test file stands for itself, and a changed module for the test file of its name in the folder that mirrors
its package. Where there is none, it stands for that folder without its subfolders. Changes since REVISION (by
default the merge base with `main`) count, committed or not.
"""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("benchmarks", "coordinator", "deploy", "federated", "worker_agent")
ALWAYS = "tests/architecture"


def paths_for(changed: Iterable[str], root: Path = ROOT) -> list[str]:
    """Paths of the tests to run, sorted, for paths of changed files."""
    paths = {ALWAYS}
    for name in changed:
        paths.update(_tests_of_one(Path(name), root))
    return sorted(paths)


def _tests_of_one(path: Path, root: Path) -> Iterator[str]:
    if path.suffix != ".py":
        return
    if path.parts[0] == "tests":
        if path.name.startswith("test_") and (root / path).is_file():
            yield str(path)
        return
    if path.parts[0] not in PACKAGES:
        return
    folder = "tests" / path.parent
    while not (root / folder).is_dir():
        folder = folder.parent
    named = folder / f"test_{path.name}"
    if (root / named).is_file():
        yield str(named)
    else:
        yield from (str(found.relative_to(root)) for found in (root / folder).glob("test_*.py"))


def changed_files(revision: str | None) -> list[str]:
    """Files that differ from `revision`, and those that git does not know yet."""
    revision = revision or _git("merge-base", "main", "HEAD")[0]
    return [*_git("diff", "--name-only", revision), *_git("ls-files", "--others", "--exclude-standard")]


def _git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    return done.stdout.split("\n")[:-1]


if __name__ == "__main__":
    print("\n".join(paths_for(changed_files(sys.argv[1] if len(sys.argv) > 1 else None))))
