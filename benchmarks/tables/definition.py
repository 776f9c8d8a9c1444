"""Definition of a table: its rows and their common federation, the jobs to run, and their results."""

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
_TABLE_FIELDS_OF_KEY = (
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
    """One method of training. `settings` are assigned to the clients by ordinal, cyclically.

    `cells` are further columns of the table, known before the run.
    """

    name: str
    algorithm: str
    config: Mapping[str, Any]
    trainable: Mapping[str, Any]
    settings: tuple[Mapping[str, Any], ...] = ({},)
    cells: Mapping[str, str] = field(default_factory=dict)

    def settings_of(self, ordinal: int) -> Mapping[str, Any]:
        """The settings with which this client registers."""
        return self.settings[ordinal % len(self.settings)]


@dataclass(frozen=True)
class Table:
    """The rows of a table, and their common federation. The name is that of the algorithm in whose README it stands.

    The training rows of each task (at most `train_rows`) are split over `clients` by a Dirichlet draw with `alpha`,
    and by a draw of client sizes with `sizes`, if given. The last client holds the `test_rows`, as it has the largest
    setting where settings rise. With `test_shares` they are split like the training rows, and each client evaluates
    its own. `evaluate_every` None means only after the last round. `target`: the table also shows the cost of
    reaching this share of the first row's last accuracy. `appendix` returns further text, which needs no training.
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
        """The same rows on two clients for one round, only to test that everything runs."""
        return replace(
            self, rounds=1, seeds=self.seeds[:1], clients=2, cohort=2, train_rows=64, test_rows=16, appendix=None
        )

    def only(self, names: Sequence[str]) -> "Table":
        """The table with only the rows of these names. Raises LookupError with the known names."""
        row_names = [row.name for row in self.rows]
        if unknown := [name for name in names if name not in row_names]:
            raise LookupError(f"there is no row {unknown[0]!r}; known: {', '.join(row_names)}")
        return replace(self, rows=tuple(row for row in self.rows if row.name in names), appendix=None)

    def check(self) -> None:
        """Raise ValueError for a row that cannot run, or for two rows with the same name."""
        names = [row.name for row in self.rows]
        if len(set(names)) != len(names):
            raise ValueError(f"table {self.name!r} has two rows with the same name: {', '.join(names)}")
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
        """Digest of the content: a job with another number in its row or table has another key."""
        content: dict[str, Any] = {name: getattr(self.table, name) for name in _TABLE_FIELDS_OF_KEY}
        content |= {"row": asdict(self.row), "task": self.task, "seed": self.seed, "device": self.device}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.row.name}, {self.task}, seed {self.seed}"


@dataclass(frozen=True)
class JobResult:
    """Result of a job. Bytes are those of whole messages, as the mean over clients and rounds.

    `evaluations`: round -> metrics on the test set, of which the last are the result. Beside the accuracy they hold
    `own_accuracy` if clients have parts of their own. They also hold the `bytes` (of all messages) and `seconds` (of
    clients and server, without evaluation) since the start. `seconds` are processor time, independent of other load.
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
    """Raise ValueError unless the algorithm accepts this config, trainable and settings from a federation."""
    config = registry.make_config(row.algorithm, row.config)
    trainable: Any = TypeAdapter(Trainable).validate_python(dict(row.trainable))
    registry.check_trainable(row.algorithm, config, trainable)
    for settings in row.settings:
        config.check_settings(settings)


def names(folder: Path = FOLDER) -> tuple[str, ...]:
    """Names of all tables, sorted."""
    return tuple(sorted(file.stem.removeprefix("rows_") for file in folder.glob("rows_*.py")))


def table(name: str) -> Table:
    """The table of that name. Raises LookupError with the known names."""
    if name not in names():
        raise LookupError(f"there is no table {name!r}; known: {', '.join(names())}")
    result: Table = importlib.import_module(f"benchmarks.tables.rows_{name}").TABLE
    return result
