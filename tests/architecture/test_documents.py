"""Rules for the Markdown documents: paths and links lead somewhere, and every line has one sentence."""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.architecture.sizes import ROOT

PACKAGES = ("federated", "coordinator", "worker_agent", "benchmarks", "examples", "deploy", "tests")
HISTORY = ("CHANGELOG.md", "0041-names.md")
"""They name modules by the names of their time."""
UNFINISHED = ("federated/algorithms/", "tests/support/")
"""Where a line may have several sentences."""
_CODE_BLOCK = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?][)\"'*]* +(?=[A-Z`*\[(\"])")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|et al|vs)\.$")


@cache
def tree() -> frozenset[str]:
    """Every file that is, or would be, committed, and every folder above one."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    files = [name for name in listing if name and (ROOT / name).exists()]
    return frozenset([*files, *(str(folder) for name in files for folder in Path(name).parents)])


def documents() -> list[str]:
    return sorted(name for name in tree() if name.endswith(".md") and "/vendor/" not in name)


def prose(document: str) -> str:
    """A document without its code blocks."""
    return _CODE_BLOCK.sub("", (ROOT / document).read_text(encoding="utf-8"))


def missing_paths(text: str) -> list[str]:
    """The paths and modules in backticks that the tree does not have."""
    return [name for name in re.findall(r"`([^`\n]+)`", text) if not exists(name)]


def exists(name: str) -> bool:
    """Whether `name` is in the tree, or is neither a path nor a module.

    A path begins with a folder of the repository; a Python file may also be named relative to `coordinator/`, and
    a file that belongs to `deploy/` relative to that folder.
    """
    if "*" in name or not re.fullmatch(r"[\w.][\w.-]*(?:/[\w.-]+)*/?", name):
        return True
    first = name.split("/")[0]
    if "/" in name and first in tree():
        return name.rstrip("/") in tree()
    if name.endswith((".py", ".sh", ".yaml", ".conf")):
        return f"coordinator/{name}" in tree() or f"deploy/{name}" in tree()
    if re.fullmatch(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+){{2,}}", name):
        return _module_exists(name.split("."))
    return True


def _module_exists(parts: list[str]) -> bool:
    """Whether the parts are a module, or a module and the name of something in its source."""
    for length in range(len(parts), 1, -1):
        path = "/".join(parts[:length])
        if f"{path}.py" in tree() or f"{path}/__init__.py" in tree():
            source = ROOT / (f"{path}.py" if f"{path}.py" in tree() else f"{path}/__init__.py")
            content = source.read_text(encoding="utf-8")
            return all(re.search(rf"\b{part}\b", content) for part in parts[length:])
    return False


def anchors(document: Path) -> set[str]:
    """GitHub's anchors of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", _CODE_BLOCK.sub("", document.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: str) -> Iterator[str]:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            yield link


def crowded_lines(text: str) -> list[str]:
    """The lines, outside tables and headings, that hold more than one sentence."""
    return [line for line in text.splitlines() if not line.lstrip().startswith(("|", "#")) and _is_crowded(line)]


def _is_crowded(line: str) -> bool:
    line = re.sub(r"`[^`]*`", "`", line)
    line = re.sub(r"^\s*(?:[*-]|\d+\.) ", "", line)
    line = re.sub(r"^\*\*[^*]+\.\*\* ", "", line)
    ends = (line[: match.start() + 1] for match in _SENTENCE_END.finditer(line))
    return any(end.count("(") == end.count(")") and not _ABBREVIATION.search(end) for end in ends)


@pytest.mark.parametrize("document", [name for name in documents() if not name.endswith(HISTORY)])
def test_every_path_that_a_document_names_exists(document: str) -> None:
    assert missing_paths(prose(document)) == []


@pytest.mark.parametrize("document", documents())
def test_every_link_leads_to_a_file_and_a_heading(document: str) -> None:
    assert list(broken_links(document)) == []


@pytest.mark.parametrize("document", [name for name in documents() if not name.startswith(UNFINISHED)])
def test_a_line_of_a_document_has_one_sentence(document: str) -> None:
    assert crowded_lines(prose(document)) == []


def test_the_rules_can_fail() -> None:
    wrong = (
        "`coordinator/gone.py` `rounds/gone.py` `gone.py` `federated.contract.Gone` `federated.gone.Gone` `docs/gone`"
    )
    assert len(missing_paths(wrong)) == 6
    right = "`rounds/tasks.py` `federated/algorithms/` `federated.contract.Algorithm` `compose.yaml` `NAME/base`"
    assert missing_paths(right) == []
    assert len(crowded_lines("One. Two.\n* **A heading.** One.\nSee (one. Two) `a. B`.\n`One`. `Two`.")) == 2
