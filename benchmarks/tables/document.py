"""A table as Markdown, and its place in a README."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.tables.definition import Row, Table
from benchmarks.tables.jobs import Finished

BEGIN = "<!-- table: begin -->"
END = "<!-- table: end -->"
MISSING = "–"


def document(table: Table, runs: Sequence[Finished], command: str, circumstances: str) -> str:
    """The command, what all rows share, and the table; `circumstances` say on what the seconds were taken."""
    parts = [f"`{command}`", _caption(table, circumstances), markdown(table, runs)]
    if table.appendix is not None:
        parts.append(table.appendix())
    return "\n\n".join(parts)


def markdown(table: Table, runs: Sequence[Finished]) -> str:
    """One line per row: mean accuracy (%) and standard deviation of each task, mean bytes and mean seconds."""
    extra = list(dict.fromkeys(name for row in table.rows for name in row.cells))
    header = ["", *extra, *table.tasks, "bytes down", "bytes up", "seconds"]
    rule = ["---", *("---" for _ in extra), *("--:" for _ in header[1 + len(extra) :])]
    return grid(header, rule, [_line(table, row, extra, runs) for row in table.rows])


def grid(header: Sequence[str], rule: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (header, *lines)]
    return "\n".join([rows[0], f"|{'|'.join(rule)}|", *rows[1:]])


def write_between(readme: Path, text: str) -> None:
    """Put `text` between the marks of a README, or at its end where it has none yet.

    Raises SystemExit for marks that are not a pair.
    """
    old = readme.read_text(encoding="utf-8")
    if BEGIN not in old and END not in old:
        old = f"{old.rstrip()}\n\n## Measured\n\n{BEGIN}\n{END}\n"
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise SystemExit(f"{readme} needs one line {BEGIN!r} and after it one line {END!r}, or neither")
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def _caption(table: Table, circumstances: str) -> str:
    return (
        f"MiniLM; {table.clients} clients (Dirichlet {table.alpha:g}), {table.cohort} drawn a round; rounds: "
        f"{table.rounds}; seeds: {', '.join(map(str, table.seeds))}. Accuracy in % on {table.test_rows} held-out "
        f"rows after the last round, mean ± standard deviation over the seeds; bytes of a whole message, mean over "
        f"clients, rounds and tasks; processor seconds of one run, mean over tasks and seeds, {circumstances}."
    )


def _line(table: Table, row: Row, extra: Sequence[str], runs: Sequence[Finished]) -> list[str]:
    mine = [run for run in runs if run.row == row.name]
    scores = [_score([run.accuracy for run in mine if run.task == task]) for task in table.tasks]
    means = [_mean([getattr(run, name) for run in mine]) for name in ("download_bytes", "upload_bytes", "seconds")]
    return [row.name, *(row.cells.get(name, "") for name in extra), *scores, *means]


def _score(accuracies: Sequence[float]) -> str:
    if len(accuracies) < 2:
        return f"{100 * accuracies[0]:.1f}" if accuracies else MISSING
    return f"{100 * statistics.mean(accuracies):.1f} ± {100 * statistics.stdev(accuracies):.1f}"


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):,.0f}" if values else MISSING
