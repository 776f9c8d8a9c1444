"""Accuracy of the demo's federation against its baselines over several seeds.

    python -m benchmarks.demo_worth

The simulation replaces the service, as both produce the same adapter bit for bit. The accuracy of the federation must
exceed that of the best organization alone by 0.05, and that of a bag of words over all data by 0.10. The figure is
the smaller of the two leads divided by its bound, for the worst seed.
"""

import argparse
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

from benchmarks.report import print_report
from examples.quickstart import baselines, tasks
from examples.quickstart.base_model import minilm
from examples.quickstart.definition import ROUNDS, definition
from examples.quickstart.quiet import quiet

LEAD_OVER_ALONE = 0.05
LEAD_OVER_WORDS = 0.10
_TARGET_TIMES_THE_BOUND = 1.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Accuracies on the held-out messages of one seed."""

    seed: int
    together: float
    best_alone: float
    bag_of_words: float

    @property
    def times_the_bound(self) -> float:
        """The smaller of the two leads, each divided by its bound."""
        alone, words = self.together - self.best_alone, self.together - self.bag_of_words
        return min(alone / LEAD_OVER_ALONE, words / LEAD_OVER_WORDS)


def compare(folder: Path, seed: int) -> Comparison:
    """Train together and alone, in two processes."""
    task = tasks.support_messages(seed)
    site = _site(folder, task, seed)
    with ProcessPoolExecutor(2, get_context("spawn"), initializer=quiet) as pool:
        together = pool.submit(_train_together, site, list(task.parts))
        alone = [pool.submit(baselines.train_alone, site, name, 1) for name in task.parts]
        best_alone = max(score.result() for score in alone)
    return Comparison(seed, together.result(), best_alone, baselines.bag_of_words(task.pooled, task.test))


def _site(folder: Path, task: tasks.TextTask, seed: int) -> baselines.Site:
    files = {}
    for name, rows in task.parts.items():
        files[name] = folder / f"{name}.jsonl"
        tasks.write_rows(files[name], rows)
    return baselines.Site(definition(task, "fedavg", ROUNDS, seed), files, minilm(), task.test, folder)


def _train_together(site: baselines.Site, names: list[str]) -> float:
    return baselines.accuracy(site, baselines.simulate(site, names, site.folder / "federated"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_worth", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    comparisons = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory(prefix="worth-") as folder:
            comparisons.append(compare(Path(folder), seed))
        print(json.dumps(asdict(comparisons[-1])), flush=True)
    figure = min(comparison.times_the_bound for comparison in comparisons)
    print_report(
        "demo_worth",
        figure,
        "times the lead that is promised",
        target=_TARGET_TIMES_THE_BOUND,
        holds=figure >= _TARGET_TIMES_THE_BOUND,
        details={"seeds": [asdict(comparison) for comparison in comparisons]},
    )


if __name__ == "__main__":
    main()
