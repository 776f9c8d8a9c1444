"""Rendering of a table as Markdown, and its insertion into a README."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.tables.definition import JobResult, Row, Table

BEGIN = "<!-- table: begin -->"
END = "<!-- table: end -->"
MISSING = "–"


def document(table: Table, runs: Sequence[JobResult], command: str, circumstances: str) -> str:
    """The command, the caption and the table. `circumstances`: the setup in which the seconds were taken."""
    parts = [f"`{command}`", _caption(table, circumstances), markdown(table, runs)]
    if table.target is not None:
        parts += [_target_caption(table.target), to_target(table, runs)]
    if table.appendix is not None:
        parts.append(table.appendix())
    return "\n\n".join(parts)


def markdown(table: Table, runs: Sequence[JobResult]) -> str:
    """One line per row: mean accuracy (%) and standard deviation of each task, mean bytes and mean seconds.

    With test shares, each task has a second column for the accuracy of the clients' own models.
    """
    extra = list(dict.fromkeys(name for row in table.rows for name in row.cells))
    tasks = [name for task in table.tasks for name in ([task, f"{task}, own"] if table.test_shares else [task])]
    header = ["", *extra, *tasks, "bytes down", "bytes up", "seconds"]
    return grid(header, _rule(header, 1 + len(extra)), [_line(table, row, extra, runs) for row in table.rows])


def to_target(table: Table, runs: Sequence[JobResult]) -> str:
    """One line per row: megabytes and processor seconds to each task's target accuracy, and in how many runs."""
    targets = {task: _target(table, task, runs) for task in table.tasks}
    header = ["", *(f"{task}, {MISSING if at is None else f'{100 * at:.1f} %'}" for task, at in targets.items())]
    lines = []
    for row in table.rows:
        mine = [run for run in runs if run.row == row.name]
        lines.append(
            [
                row.name,
                *(_cost_to_target([run for run in mine if run.task == task], targets[task]) for task in targets),
            ]
        )
    return grid(header, _rule(header, 1), lines)


def grid(header: Sequence[str], rule: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (header, *lines)]
    return "\n".join([rows[0], f"|{'|'.join(rule)}|", *rows[1:]])


def write_between(readme: Path, text: str) -> None:
    """Write `text` between the markers of a README, or at its end if it has none.

    Raises SystemExit unless there is one pair of markers, or none.
    """
    old = readme.read_text(encoding="utf-8")
    if BEGIN not in old and END not in old:
        old = f"{old.rstrip()}\n\n## Measured\n\n{BEGIN}\n{END}\n"
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise SystemExit(f"{readme} needs one line {BEGIN!r} followed by one line {END!r}, or neither")
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def _rule(header: Sequence[str], words: int) -> list[str]:
    return [*("---" for _ in header[:words]), *("--:" for _ in header[words:])]


def _caption(table: Table, circumstances: str) -> str:
    cut = (
        f"Dirichlet {table.alpha:g}"
        if table.sizes is None
        else f"labels Dir({table.alpha:g}), sizes Dir({table.sizes:g})"
    )
    rows = "" if table.train_rows is None else f" over at most {table.train_rows} training rows"
    own = (
        "; own: of each client's own model on its part of them, cut as its training rows" if table.test_shares else ""
    )
    return (
        f"MiniLM; {table.clients} clients ({cut}{rows}), {table.cohort} drawn a round; rounds: "
        f"{table.rounds}; seeds: {', '.join(map(str, table.seeds))}. Accuracy in % on {table.test_rows} held-out "
        f"rows after the last round{own}, mean ± standard deviation over the seeds; bytes of a whole message, mean "
        f"over clients, rounds and tasks; processor seconds of one run, mean over tasks and seeds, {circumstances}."
    )


def _target_caption(target: float) -> str:
    return (
        f"To the target, which is {100 * target:g} % of the first row's last accuracy: megabytes of all messages "
        f"both ways and processor seconds of all clients and the server, preparation counted, evaluation not; mean "
        f"over the seeds that reached it, and how many did."
    )


def _line(table: Table, row: Row, extra: Sequence[str], runs: Sequence[JobResult]) -> list[str]:
    mine = [run for run in runs if run.row == row.name]
    views = ("accuracy", "own_accuracy") if table.test_shares else ("accuracy",)
    scores = [
        _score([run.last[view] for run in mine if run.task == task and view in run.last])
        for task in table.tasks
        for view in views
    ]
    means = [_mean([getattr(run, name) for run in mine]) for name in ("download_bytes", "upload_bytes", "seconds")]
    return [row.name, *(row.cells.get(name, "") for name in extra), *scores, *means]


def _target(table: Table, task: str, runs: Sequence[JobResult]) -> float | None:
    first = [run.accuracy for run in runs if run.row == table.rows[0].name and run.task == task]
    return (table.target or 0.0) * statistics.mean(first) if first else None


def _cost_to_target(runs: Sequence[JobResult], target: float | None) -> str:
    if target is None or not runs:
        return MISSING
    costs = [cost for run in runs if (cost := run.first_evaluation_at(target)) is not None]
    if not costs:
        return f"0 of {len(runs)}"
    megabytes = statistics.mean(cost["bytes"] for cost in costs) / 1e6
    seconds = statistics.mean(cost["seconds"] for cost in costs)
    return f"{megabytes:,.1f} MB, {seconds:,.0f} s ({len(costs)} of {len(runs)})"


def _score(accuracies: Sequence[float]) -> str:
    if len(accuracies) < 2:
        return f"{100 * accuracies[0]:.1f}" if accuracies else MISSING
    return f"{100 * statistics.mean(accuracies):.1f} ± {100 * statistics.stdev(accuracies):.1f}"


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):,.0f}" if values else MISSING
