"""Demo (`make demo`): three organizations fine-tune together on this machine as they would over the internet."""

import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from examples.quickstart import federation as rest
from examples.quickstart import tasks
from examples.quickstart.base_model import MODEL_ID, minilm
from examples.quickstart.definition import HELD_OUT, ROUNDS, definition
from examples.quickstart.installation import Installation, Member
from examples.quickstart.quiet import quiet

FOLDER = Path(".demo")
DATASET = "messages"


@dataclass(frozen=True)
class Scores:
    """Accuracy on the held-out rows."""

    initial: float
    alone: dict[str, float]
    federation: float
    pooled: float
    bag_of_words: float


def main(
    data: Annotated[Path | None, typer.Option(help="folder with train.jsonl and test.jsonl")] = None,
    algorithm: Annotated[str, typer.Option(help="any algorithm of the registry")] = "fedavg",
    rounds: Annotated[int, typer.Option(min=1)] = ROUNDS,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    folder: Annotated[Path, typer.Option(help="folder for all files of the demo, emptied at its start")] = FOLDER,
) -> None:
    """Run the demo and compare the federation with its baselines."""
    console = Console()
    start = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    task = tasks.support_messages(seed) if data is None else tasks.folder(data, seed)
    demo = Demo(folder.resolve(), task, definition(task, algorithm, rounds, seed), console)
    demo.show_data()
    scores = demo.run()
    demo.report(scores, time.monotonic() - start)


class Demo:
    """A run of the demo. `folder` holds the files of all processes, `body` is the definition of the federation."""

    def __init__(self, folder: Path, task: tasks.TextTask, body: dict[str, Any], console: Console) -> None:
        self._folder = folder
        self._task = task
        self._body = body
        self._console = console
        self._base = minilm()
        self._url = ""
        for name, rows in {**task.parts, "pooled": task.pooled}.items():
            (folder / name).mkdir()
            tasks.write_rows(folder / name / "train.jsonl", rows)

    def show_data(self) -> None:
        """Print the rows and label shares of each organization."""
        table = Table(
            title=f"{self._task.name}: {len(self._task.test)} held-out rows, and the rows of each organization"
        )
        for column in ("organization", "rows", *self._task.labels):
            table.add_column(column, justify="right")
        for name, shares in self._task.label_shares().items():
            cells = [f"{share:.0%}" for share in shares.values()]
            table.add_row(name, str(len(self._task.parts[name])), *cells)
        self._console.print(table)

    def run(self) -> Scores:
        """Run the federation, then its baselines, so that they do not share the machine."""
        adapter = self._federate()
        with self._step("the same algorithm without a federation, for comparison"):
            return self._compare(adapter)

    def _federate(self) -> Path:
        with Installation(self._folder) as installation:
            self._url = installation.url
            with self._step(f"three organizations join {installation.url}"):
                members = [installation.join(name, self._worker(name)) for name in self._task.parts]
            with self._step("the federation"):
                federation = rest.run(installation, members, self._body, self._console)
            return self._download(installation, members[0], federation)

    def _download(self, installation: Installation, owner: Member, federation: str) -> Path:
        return rest.download_adapter(installation, owner, federation, self._folder / "adapter")

    def _worker(self, name: str) -> dict[str, Any]:
        dataset = {"path": "train.jsonl", "held_out": HELD_OUT}
        return {"datasets": {DATASET: dataset}, "models": {MODEL_ID: str(self._base)}, "device": "cpu"}

    def _compare(self, adapter: Path) -> Scores:
        """Compute the scores in one process per core, with one thread each, the longest first."""
        quiet()
        from examples.quickstart import baselines

        site = baselines.Site(self._body, self._files(), self._base, self._task.test, self._folder / "comparison")
        parts = list(self._task.parts)
        with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=quiet) as pool:
            pooled = pool.submit(baselines.train_alone, site, "pooled", len(parts))
            alone = {name: pool.submit(baselines.train_alone, site, name, 1) for name in parts}
            initial = pool.submit(baselines.initial_accuracy, site, "pooled")
            federation = pool.submit(baselines.accuracy, site, adapter)
            return Scores(
                initial=initial.result(),
                alone={name: score.result() for name, score in alone.items()},
                federation=federation.result(),
                pooled=pooled.result(),
                bag_of_words=baselines.bag_of_words(self._task.pooled, self._task.test),
            )

    def _files(self) -> dict[str, Path]:
        return {name: self._folder / name / "train.jsonl" for name in (*self._task.parts, "pooled")}

    def report(self, scores: Scores, seconds: float) -> None:
        """Print the scores, the path of the adapter, and the addresses."""
        table = Table(title=f"accuracy on {len(self._task.test)} held-out rows ({seconds:.0f} s in all)")
        table.add_column("trained by")
        table.add_column("accuracy", justify="right")
        for name, value in _rows(scores):
            style = "bold" if name == "federated" else None
            table.add_row(name, f"{value:.1%}", style=style)
        self._console.print(table)
        self._console.print(f"adapter   {self._folder / 'adapter'}", soft_wrap=True)
        self._console.print(
            f"API       {self._url}  (start it again: coordinator up --data {self._folder / 'coordinator'})",
            soft_wrap=True,
        )
        self._console.print(f"API docs  {self._url}/docs", soft_wrap=True)

    @contextmanager
    def _step(self, title: str) -> Iterator[None]:
        start = time.monotonic()
        self._console.print(f"[dim]{title} …[/dim]")
        yield
        self._console.print(f"[dim]  {time.monotonic() - start:.0f} s[/dim]")


def _rows(scores: Scores) -> Sequence[tuple[str, float]]:
    alone = [(f"{name} alone", value) for name, value in scores.alone.items()]
    return [
        ("nobody (untrained head)", scores.initial),
        ("bag of words, all data pooled", scores.bag_of_words),
        *alone,
        ("federated", scores.federation),
        ("all data pooled", scores.pooled),
    ]


if __name__ == "__main__":
    typer.run(main)
