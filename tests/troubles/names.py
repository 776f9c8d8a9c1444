"""Names of the tests in a file, read without running it."""

import ast
import functools
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def is_there(test: str) -> bool:
    """Whether `path::function` or `path::Class::function`, with or without an id of parameters, is a test here."""
    path, _, name = test.partition("[")[0].partition("::")
    return name in names_of(path)


@functools.cache
def names_of(path: str) -> frozenset[str]:
    """`function` and `Class::function` of a file of tests; none if there is no such file."""
    file = REPOSITORY / path
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else ():
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
    return frozenset(names)
