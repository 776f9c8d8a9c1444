"""Speed of rebuilding a model from K scalars, and of a local step: `python -m benchmarks.fedkseed_rebuild`.

The shapes are MiniLM's (22.7 million parameters), and K = 4096. Rebuild: all parameters by the structured directions,
including their random draws, against the method of the authors, which draws every direction for every tensor with a
seeded `torch.randn` and adds it. Only `--explicit` of those directions are timed and scaled to K. Step: two losses
along a direction and the move, in the session that trains, against two bare forward passes of the same batch, in
turn.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import print_report
from benchmarks.rows import open_rows
from federated.maths.directions import Directions, directions
from federated.trainable import Full, Lora
from worker_agent.training.session import Session

_TARGET_RATIO = 3000.0
_TARGET_STEP_RATIO = 1.3
_TARGET_STEP_SECONDS = 0.06
_TARGET_LORA_RATIO = 1.15
_LABELS = ("a", "b", "c", "d")
_TOKENS = 64
_SEED = 5
_LORA = Lora(r=8, lora_alpha=16, target_modules=("query", "value"))


def open_minilm(folder: Path, trainable: Full | Lora) -> Session:
    """A session of MiniLM over examples that are all truncated to 64 tokens."""
    rows = [("word " * (2 * _TOKENS), _LABELS[row % 4]) for row in range(64)]
    return open_rows(rows, _LABELS, trainable, folder, max_length=_TOKENS, seed=_SEED)


def flat_parameters(session: Session, factors_alone: bool = False) -> dict[str, Tensor]:
    """Flat views of the trained tensors, or only of LoRA's factors."""
    trainables = {name: value for name, value in session.trainables.items() if not factors_alone or ".lora_" in name}
    return {name: value.detach().view(-1) for name, value in trainables.items()}


def rebuild(candidates: Directions, parameters: Mapping[str, Tensor], coefficients: Tensor) -> None:
    """Rebuild the parameters as a client does at the start of each job."""
    sizes = {name: value.numel() for name, value in parameters.items()}
    candidates.over(sizes, torch.device("cpu")).subtract(coefficients, parameters)


def rebuild_explicitly(parameters: Mapping[str, Tensor], coefficients: Tensor) -> None:
    """Rebuild the parameters as the authors' code does, with one direction per coefficient."""
    for seed, coefficient in enumerate(coefficients.tolist()):
        generator = torch.Generator().manual_seed(seed)
        for value in parameters.values():
            value.sub_(torch.randn(value.shape, generator=generator), alpha=coefficient)


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_rebuild(session: Session, count: int, repeats: int, explicit: int) -> dict[str, float]:
    """Medians over the repeats of both methods in turn. The explicit one is scaled from `explicit` to `count`."""
    candidates = directions("hadamard", _SEED, count)
    parameters = flat_parameters(session)
    coefficients = torch.randn(count, generator=torch.Generator().manual_seed(1)) * 1e-5
    ours, theirs = [], []
    rebuild(candidates, parameters, coefficients)
    for _ in range(repeats):
        ours.append(seconds(lambda: rebuild(candidates, parameters, coefficients)))
        theirs.append(seconds(lambda: rebuild_explicitly(parameters, coefficients[:explicit])))
    whole = statistics.median(theirs) * count / explicit
    return {
        "elements": float(sum(value.numel() for value in parameters.values())),
        "structured_seconds": statistics.median(ours),
        "explicit_seconds_scaled": whole,
        "ratio": whole / statistics.median(ours),
    }


def measure_step(
    session: Session, count: int, batch_size: int, repeats: int, factors_alone: bool
) -> dict[str, float]:
    """Medians over the repeats of a step, of two bare passes, and of a step without its passes."""
    parameters = flat_parameters(session, factors_alone)
    sizes = {name: value.numel() for name, value in parameters.items()}
    field = directions("hadamard", _SEED, count).over(sizes, torch.device("cpu"))
    clean = {name: value.clone() for name, value in parameters.items()}
    batch = next(session.batches(range(batch_size), batch_size))

    def two_passes() -> None:
        session.loss(batch).item()
        session.loss(batch).item()

    def steps(forward: Callable[[], object]) -> Callable[[], None]:
        last, index = [field.direction(0)], itertools.count(1)

        def step() -> None:
            direction = field.direction(next(index))
            direction.follow(last[0], 1e-9, 1e-3, clean, parameters)
            forward()
            direction.move(-1e-3, clean, parameters)
            forward()
            last[0] = direction

        return step

    samples: dict[str, list[float]] = {"bare": [], "step": [], "moves": []}
    whole_step, moves_only = steps(lambda: session.loss(batch).item()), steps(lambda: None)
    for turn in range(repeats + 1):
        turn_seconds = {"bare": seconds(two_passes), "step": seconds(whole_step), "moves": seconds(moves_only)}
        # The first turn warms the caches.
        for name, value in turn_seconds.items() if turn else ():
            samples[name].append(value)
    ratios = [step / bare for step, bare in zip(samples["step"], samples["bare"], strict=True)]
    return {
        "two_passes_seconds": statistics.median(samples["bare"]),
        "step_seconds": statistics.median(samples["step"]),
        "perturb_and_update_seconds": statistics.median(samples["moves"]),
        "ratio": statistics.median(ratios),
    }


def _round(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in values.items()}


def _show(title: str, values: Mapping[str, float]) -> dict[str, float]:
    digits = _round(values)
    print(f"{title}: " + ", ".join(f"{name} {value:g}" for name, value in digits.items()), flush=True)
    return digits


def _measure(options: argparse.Namespace, folder: Path) -> None:
    with torch.inference_mode():
        session = open_minilm(folder, Full())
        rebuild_report = _show(
            "rebuild", measure_rebuild(session, options.candidates, options.repeats, options.explicit)
        )
        steps = {
            f"batch_{size}": _show(
                f"all weights, batch {size}", measure_step(session, options.candidates, size, options.repeats, False)
            )
            for size in options.batches
        }
        session = open_minilm(folder, _LORA)
        factors = _show("factors, batch 8", measure_step(session, options.candidates, 8, options.repeats, True))
    widest = steps[f"batch_{options.batches[-1]}"]
    slowest_moves = max(step["perturb_and_update_seconds"] for step in steps.values())
    checks = {
        "rebuild": rebuild_report["ratio"] >= _TARGET_RATIO,
        "step": widest["ratio"] <= _TARGET_STEP_RATIO,
        "perturb_and_update": slowest_moves <= _TARGET_STEP_SECONDS,
        "factors": factors["ratio"] <= _TARGET_LORA_RATIO,
    }
    details: dict[str, Any] = {
        "candidates": options.candidates,
        "threads": torch.get_num_threads(),
        "explicit_directions_timed": options.explicit,
        "rebuild": rebuild_report,
        "step": steps,
        "step_ratio_target": _TARGET_STEP_RATIO,
        "perturb_and_update_seconds_target": _TARGET_STEP_SECONDS,
        "step_of_factors_at_batch_8": factors,
        "step_of_factors_ratio_target": _TARGET_LORA_RATIO,
        "held": checks,
    }
    figure = rebuild_report["ratio"]
    print_report("fedkseed_rebuild", figure, "x", target=_TARGET_RATIO, holds=all(checks.values()), details=details)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fedkseed_rebuild", description=__doc__)
    parser.add_argument("--candidates", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--explicit", type=int, default=10, help="directions of the authors' method that are timed")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="fedkseed-") as folder:
        _measure(options, Path(folder))


if __name__ == "__main__":
    main()
