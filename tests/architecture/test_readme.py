"""The README's table of algorithms against the registry, and the form of the decisions."""

import re
from pathlib import Path

from federated import registry
from federated.contract import Algorithm
from tests.architecture.sizes import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_algorithms_is_the_registry() -> None:
    rows = [_row(algorithm) for algorithm in registry.algorithms().values()]
    table = re.search(r"\| name \| title .*?\n\|[-|]+\|\n((?:\|.*\n)+)", README)
    assert table is not None
    assert table.group(1).splitlines() == rows


def test_every_decision_is_listed_under_its_title_and_has_its_five_parts() -> None:
    folder = ROOT / "docs/decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    decisions = sorted(folder.glob("0*.md"))
    assert decisions
    for decision in decisions:
        number, title = decision.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").split(": ", 1)
        assert f"| [{number}]({decision.name}) | {title} |" in index
        assert _parts(decision) == ["Context", "Decision", "Consequences", "Alternatives", "Enforced by"], decision


def _row(algorithm: Algorithm) -> str:
    trainables = ", ".join(sorted(algorithm.trainables))
    cells = [f"`{algorithm.name}`", algorithm.title, trainables, "yes" if algorithm.personal else "no"]
    return f"| {' | '.join(cells)} |"


def _parts(decision: Path) -> list[str]:
    return re.findall(r"^\*\*([A-Z][a-z ]+)\.\*\*", decision.read_text(encoding="utf-8"), re.MULTILINE)
