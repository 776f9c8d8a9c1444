"""Naming rules: few bare participles among the names that code binds, and module docstrings that begin with a noun.

`python -m tests.architecture.naming` prints what breaks a rule and exits 1.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.sizes import ROOT, sources

MEASURED_FOLDERS = ("coordinator", "federated", "worker_agent", "benchmarks", "examples")
MAX_PARTICIPLES_PER_1000 = 15
INTERROGATIVES = {"What", "Who", "Which", "Where", "How", "Whether", "Whose", "When", "Why"}
_IRREGULAR = """
become begun bought broken brought built caught chosen come dealt done drawn driven felt fought found frozen
given gone got grown heard held hid hung hurt kept known laid lain led lent lost made meant met paid risen rung
said seen sent shaken shot shown shut slept sold spent spoken stolen stood struck sung swept sworn
taken thought thrown told understood woken won worn wound woven written
"""
IRREGULAR_PARTICIPLES = frozenset(_IRREGULAR.split())
"""Without `set`, `read`, `run` and others that are also nouns or imperatives."""
NOUNS_IN_ED = frozenset(
    {"bed", "embed", "exceed", "feed", "indeed", "need", "proceed", "seed", "shared", "shed", "speed"}
)
MIN_LENGTH_IN_ED = 4


def is_participle(name: str) -> bool:
    """Whether the whole of `name` is a past participle: `found`, `_chosen`, `sorted`; not `sorted_rows`."""
    name = name.strip("_").lower()
    ends_in_ed = "_" not in name and len(name) >= MIN_LENGTH_IN_ED and name.endswith("ed") and name not in NOUNS_IN_ED
    return name in IRREGULAR_PARTICIPLES or ends_in_ed


def bindings(tree: ast.Module) -> Iterator[str]:
    """The name of every function, parameter and class, and of every assignment to a variable or an attribute."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name
                yield from (a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))
            case ast.ClassDef():
                yield node.name
            case ast.Name(ctx=ast.Store()):
                yield node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.attr


def begins_with_interrogative(tree: ast.Module) -> bool:
    words = (ast.get_docstring(tree) or "").split()
    return bool(words) and words[0].strip(",.:") in INTERROGATIVES


def broken_rules(files: list[Path], root: Path = ROOT) -> list[str]:
    """One line per broken rule; the rate of participles is that of all the files in `MEASURED_FOLDERS` together."""
    faults: list[str] = []
    binding_count = 0
    participles: Counter[str] = Counter()
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if begins_with_interrogative(tree):
            faults.append(f"{path}: the module docstring begins with an interrogative, not with a noun")
        if path.relative_to(root).parts[0] in MEASURED_FOLDERS:
            names = list(bindings(tree))
            binding_count += len(names)
            participles.update(filter(is_participle, names))
    rate = 1000 * participles.total() / max(binding_count, 1)
    if rate > MAX_PARTICIPLES_PER_1000:
        commonest = ", ".join(f"{name} ({count})" for name, count in participles.most_common(10))
        faults.append(
            f"{rate:.1f} of 1,000 names are bare participles, at most {MAX_PARTICIPLES_PER_1000}"
            f"; the commonest: {commonest}"
        )
    return faults


if __name__ == "__main__":
    broken = broken_rules(sources())
    print(
        "\n".join(broken)
        or "naming: participles within the bound, and no module docstring begins with an interrogative"
    )
    sys.exit(1 if broken else 0)
