"""What a table is, as data: its rows, and the federation that all of them run."""

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from federated import registry
from federated.trainable import Trainable

FOLDER = Path(__file__).parent
_SHARED = (
    "rounds",
    "clients",
    "cohort",
    "alpha",
    "sizes",
    "train_rows",
    "test_rows",
    "test_shares",
    "evaluate_every",
)


@dataclass(frozen=True)
class Row:
    """One way to train. `settings` go to the clients by ordinal, over and over.

    `cells` are further columns of the table, known before anything runs.
    """

    name: str
    algorithm: str
    config: Mapping[str, Any]
    trainable: Mapping[str, Any]
    settings: tuple[Mapping[str, Any], ...] = ({},)
    cells: Mapping[str, str] = field(default_factory=dict)

    def settings_of(self, ordinal: int) -> Mapping[str, Any]:
        """What this client registers with."""
        return self.settings[ordinal % len(self.settings)]


@dataclass(frozen=True)
class Table:
    """The rows of a method's README, and what they share. The algorithm whose README it is has the table's name.

    Of each task the training rows (at most `train_rows`) are cut over `clients` by a Dirichlet draw with `alpha`, and
    by one of client sizes with `sizes`, if any. `test_rows` are held by the last client, who has the largest setting
    where settings rise; with `test_shares` they are cut as the training rows, and each client evaluates its own.
    `evaluate_every` None: after the last round alone. `target`: what it takes to reach so much of the first row's
    last accuracy is told too. `appendix` makes more text, from sums alone.
    """

    name: str
    rows: tuple[Row, ...]
    rounds: int
    tasks: tuple[str, ...] = ("subj", "trec")
    seeds: tuple[int, ...] = (0, 1, 2)
    clients: int = 20
    cohort: int = 5
    alpha: float = 0.5
    sizes: float | None = None
    train_rows: int | None = None
    test_rows: int = 500
    test_shares: bool = False
    evaluate_every: int | None = None
    target: float | None = None
    appendix: Callable[[], str] | None = None

    def quick(self) -> "Table":
        """The same rows on two clients for one round: whether everything runs, and nothing else."""
        return replace(
            self, rounds=1, seeds=self.seeds[:1], clients=2, cohort=2, train_rows=64, test_rows=16, appendix=None
        )

    def only(self, names: Sequence[str]) -> "Table":
        """The rows of these names. Raises LookupError with those there are."""
        row_names = [row.name for row in self.rows]
        if unknown := [name for name in names if name not in row_names]:
            raise LookupError(f"no row is named {unknown[0]!r}; there are: {', '.join(row_names)}")
        return replace(self, rows=tuple(row for row in self.rows if row.name in names), appendix=None)

    def check(self) -> None:
        """Raise ValueError for a row that cannot run, or for two of one name."""
        names = [row.name for row in self.rows]
        if len(set(names)) != len(names):
            raise ValueError(f"table {self.name!r} has two rows of one name: {', '.join(names)}")
        for row in self.rows:
            check_row(row)


@dataclass(frozen=True)
class Job:
    """One federation to run."""

    table: Table
    row: Row
    task: str
    seed: int
    device: str

    def key(self) -> str:
        """Names what is run by its content: another number in the row or the table is another job."""
        content: dict[str, Any] = {name: getattr(self.table, name) for name in _SHARED}
        content |= {"row": asdict(self.row), "task": self.task, "seed": self.seed, "device": self.device}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.row.name}, {self.task}, seed {self.seed}"


@dataclass(frozen=True)
class JobResult:
    """What came of a job. Bytes are of whole messages, the mean over clients and rounds.

    `evaluations`: round -> metrics on the test set; the last round's are the result. Beside the accuracy stand the
    `own_accuracy`, if clients have parts of their own, and the `bytes` (of all messages) and `seconds` (of everybody,
    without evaluation) that it took from the start. `seconds` are the processor's: they do not depend on what else
    runs.
    """

    key: str
    row: str
    task: str
    seed: int
    evaluations: dict[int, dict[str, float]]
    download_bytes: float
    upload_bytes: float
    seconds: float

    @property
    def accuracy(self) -> float:
        return self.last["accuracy"]

    @property
    def last(self) -> dict[str, float]:
        return self.evaluations[max(self.evaluations)]

    def first_evaluation_at(self, accuracy: float) -> dict[str, float] | None:
        """The first evaluation with this accuracy, if there is one."""
        return next(
            (evaluation for _, evaluation in sorted(self.evaluations.items()) if evaluation["accuracy"] >= accuracy),
            None,
        )


def check_row(row: Row) -> None:
    """Raise ValueError unless the algorithm takes this config, trainable and settings, as a federation's request."""
    config = registry.make_config(row.algorithm, row.config)
    trainable: Any = TypeAdapter(Trainable).validate_python(dict(row.trainable))
    registry.check_trainable(row.algorithm, config, trainable)
    for settings in row.settings:
        config.check_settings(settings)


def names(folder: Path = FOLDER) -> tuple[str, ...]:
    """All tables, sorted."""
    return tuple(sorted(file.stem.removeprefix("rows_") for file in folder.glob("rows_*.py")))


def table(name: str) -> Table:
    """The table of that name. Raises LookupError with those there are."""
    if name not in names():
        raise LookupError(f"there is no table {name!r}; there are: {', '.join(names())}")
    result: Table = importlib.import_module(f"benchmarks.tables.rows_{name}").TABLE
    return result
