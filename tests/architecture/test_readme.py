"""What the README says of algorithms, commands and pages is what the tree has."""

import re
from pathlib import Path

from federated import registry
from federated.contract import Algorithm
from tests.architecture.sizes import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_algorithms_is_the_registry() -> None:
    rows = [_row(found) for found in registry.algorithms().values()]
    table = re.search(r"\| name \| title .*?\n\|[-|]+\|\n((?:\|.*\n)+)", README)
    assert table is not None
    assert table.group(1).splitlines() == rows


def test_every_page_that_is_linked_exists() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#]+\.md)", page.read_text("utf-8"))]
    assert len(links) >= 5
    assert [str(page.parent / link) for page, link in links if not (page.parent / link).is_file()] == []


def test_every_file_that_the_threat_model_and_the_decisions_name_exists() -> None:
    pages = [ROOT / "docs/threat-model.md", *sorted((ROOT / "docs/decisions").glob("002[6-9]*.md"))]
    pages += sorted((ROOT / "docs/decisions").glob("00[3-9]*.md"))
    named = [
        (page, file) for page in pages for file in re.findall(r"`([\w-]+(?:/[\w-]+)+\.\w+)`", page.read_text("utf-8"))
    ]
    assert len(named) > 30
    assert [(page.name, file) for page, file in named if not (ROOT / file).is_file()] == []


def test_every_decision_is_listed_and_has_its_five_parts() -> None:
    folder = ROOT / "docs/decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    decisions = sorted(folder.glob("0*.md"))
    assert decisions
    for decision in decisions:
        assert f"({decision.name})" in index
        assert _parts(decision) == ["Context", "Decision", "Consequences", "Alternatives", "Enforced by"], decision


def _row(found: Algorithm) -> str:
    cells = [f"`{found.name}`", found.title, ", ".join(sorted(found.trainables)), "yes" if found.personal else "no"]
    return f"| {' | '.join(cells)} |"


def _parts(decision: Path) -> list[str]:
    return re.findall(r"^\*\*([A-Z][a-z ]+)\.\*\*", decision.read_text(encoding="utf-8"), re.MULTILINE)
