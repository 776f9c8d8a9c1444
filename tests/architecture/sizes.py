"""Measures the size rules: function p90 at most 25 lines, none over 60; file at most 300 lines.

`python -m tests.architecture.sizes` prints what breaks a rule and exits 1.
"""

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("federated", "coordinator", "worker_agent", "deploy", "benchmarks", "examples", "alembic", "tests")
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_FUNCTION_P90_LINES = 25
FORBIDDEN_NAMES = {"utils", "helpers", "common", "manager"}


def sources(root: Path = ROOT) -> list[Path]:
    """Every Python file that is, or would be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],  # noqa: S607
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return [root / name for name in listed if name.split("/")[0] in PACKAGES and (root / name).exists()]


def function_lines(source: str) -> Iterator[tuple[str, int]]:
    """Name and length in lines of every function in `source`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def broken_rules(files: list[Path]) -> list[str]:
    """One line per broken rule."""
    found: list[str] = []
    lengths: list[int] = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        lines = len(text.splitlines())
        if lines > MAX_FILE_LINES:
            found.append(f"{path}: {lines} lines, at most {MAX_FILE_LINES}")
        if path.stem in FORBIDDEN_NAMES:
            found.append(f"{path}: a file is named for what it holds, not {path.stem!r}")
        for name, length in function_lines(text):
            lengths.append(length)
            if length > MAX_FUNCTION_LINES:
                found.append(f"{path}: {name} has {length} lines, at most {MAX_FUNCTION_LINES}")
    p90 = statistics.quantiles(lengths, n=10)[-1] if len(lengths) > 1 else 0
    if p90 > MAX_FUNCTION_P90_LINES:
        found.append(f"function p90 is {p90} lines, at most {MAX_FUNCTION_P90_LINES}")
    return found


if __name__ == "__main__":
    broken = broken_rules(sources())
    print("\n".join(broken) or "sizes: every file and function within its bound")
    sys.exit(1 if broken else 0)
