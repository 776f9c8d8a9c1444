"""Cost of scoring every example against an ordinary epoch of training: `python -m benchmarks.fisher_scores`.

The model is MiniLM with LoRA (r 8 on query and value). The examples are as long as those of TREC, Subj and RTE, in
batches of 32 sorted by length. One run measures three methods in turn: squared gradient norms of all examples by
hooks, one epoch of the shared loop over the same batches, and one example at a time by autograd. The figure is the
worst of the three ratios of medians, hooks / epoch. On each shape hooks must also be faster than one example at a
time and give the same scores.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import print_report
from benchmarks.rows import open_rows
from federated.algorithm_kit.local_training import Hooks, train
from federated.algorithms.fibecfed.fisher import fisher_traces, token_counts
from federated.algorithms.fibecfed.layers import layer_tensors
from federated.contract import GradientConfig
from federated.session import TrainingSession
from federated.trainable import Lora
from worker_agent.training.session import Session

_TARGET_RATIO = 1.1
_TARGET_DIFFERENCE = 1e-5

_LORA = Lora(r=8, lora_alpha=16, target_modules=("query", "value"))
_BATCH = 32
# Words of an example: mean and spread of a log-normal draw, and the maximum.
SHAPES = {"trec": (9.0, 0.35, 30), "subj": (22.0, 0.45, 100), "rte": (52.0, 0.55, 200)}
_WORDS = ("account", "card", "late", "thanks", "please", "why", "when", "phone", "bill", "house", "tree", "of", "the")


def texts(shape: str, count: int) -> list[str]:
    """Texts of random words, as long as the examples of a data set."""
    mean, spread, most = SHAPES[shape]
    draw = random.Random(shape)
    return [
        " ".join(
            draw.choices(_WORDS, k=max(3, min(most, round(mean * draw.lognormvariate(-(spread**2) / 2, spread)))))
        )
        for _ in range(count)
    ]


def open_shape(folder: Path, shape: str, count: int, device: str) -> Session:
    """A session over such examples, in which no factor is zero."""
    rows = [(text, "ab"[index % 2]) for index, text in enumerate(texts(shape, count))]
    session = open_rows(rows, ("a", "b"), _LORA, folder, device=device)
    draw = torch.Generator().manual_seed(0)
    shapes = {name: value.shape for name, value in session.trainables.items() if ".lora_B." in name}
    session.load({name: torch.randn(shape, generator=draw) * 0.02 for name, shape in shapes.items()})
    return session


def one_at_a_time(session: TrainingSession, order: Sequence[int]) -> Tensor:
    """Scores from one backward pass for each example. Returns (examples,)."""
    names = [name for names in layer_tensors(session.facts).values() for name in names]
    session.train_all_except([name for name in session.trainables if name not in names])
    session.training(False)
    factors = [session.trainables[name] for name in names]
    scores = torch.zeros(session.examples)
    for batch in session.batches(order, 1):
        gradients = torch.autograd.grad(session.loss(batch), factors)
        scores[batch.indices[0]] = float(torch.stack([gradient.square().sum() for gradient in gradients]).sum())
    return scores


def epoch(session: TrainingSession, order: Sequence[int]) -> None:
    """One epoch of the shared loop over the same batches, at a negligible learning rate."""
    session.train_all_except(())
    train(session, GradientConfig(batch_size=_BATCH, learning_rate=1e-9), Hooks(order=lambda _: order))


def measure(session: TrainingSession, turns: int) -> dict[str, Any]:
    """Median seconds of each method after one turn of warm-up, and the largest relative difference of the scores."""
    tensors_of_layer = layer_tensors(session.facts)
    order = torch.argsort(token_counts(session, _BATCH), stable=True).tolist()
    ways: dict[str, Callable[[], object]] = {
        "hooks": partial(fisher_traces, session, tensors_of_layer, order, _BATCH),
        "epoch": partial(epoch, session, order),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name in sorted(ways, reverse=turn % 2 == 1):
            seconds[name] += [_seconds(ways[name])] if turn else [_seconds(ways[name])][1:]
    by_hooks = fisher_traces(session, tensors_of_layer, order, _BATCH)
    start = time.perf_counter()
    singly = one_at_a_time(session, order)
    alone = time.perf_counter() - start
    medians = {name: statistics.median(samples) for name, samples in seconds.items()}
    return {
        "examples": session.examples,
        "tokens": int(token_counts(session, _BATCH).sum()),
        "hooks_seconds": medians["hooks"],
        "epoch_seconds": medians["epoch"],
        "one_at_a_time_seconds": alone,
        "ratio_to_epoch": medians["hooks"] / medians["epoch"],
        "times_faster_than_one_at_a_time": alone / medians["hooks"],
        "difference": float(((by_hooks - singly).abs() / singly).max()),
    }


def _seconds(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fisher_scores", description=__doc__)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    with tempfile.TemporaryDirectory(prefix="fisher-") as folder:
        for shape in SHAPES:
            results[shape] = measure(open_shape(Path(folder), shape, options.examples, options.device), options.turns)
            print(f"{shape}: {json.dumps(results[shape])}", flush=True)
    worst = max(result["ratio_to_epoch"] for result in results.values())
    slowest = min(result["times_faster_than_one_at_a_time"] for result in results.values())
    difference = max(result["difference"] for result in results.values())
    print_report(
        "fisher_scores",
        worst,
        "times an ordinary epoch",
        target=_TARGET_RATIO,
        holds=worst <= _TARGET_RATIO and slowest >= 1 and difference <= _TARGET_DIFFERENCE,
        details={
            "threads": options.threads,
            "device": options.device,
            "times_faster_than_one_at_a_time": slowest,
            "difference": difference,
            "difference_target": _TARGET_DIFFERENCE,
            **results,
        },
    )


if __name__ == "__main__":
    main()
