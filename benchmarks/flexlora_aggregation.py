"""Speed of the best low-rank factors of a sum of mixed ranks: `python -m benchmarks.flexlora_aggregation`.

One matrix: 4096 x 4096 from clients of ranks 4 to 64, against forming the sum and its full SVD. A wide stack: the
leading 200 of 2048 x 2048 from ranks that sum to 2,760, against the full SVD and `torch.svd_lowrank` of the formed
sum. Its factors share 256 directions; flat Gaussian factors are measured too. A whole adapter: q and v of a LLaMA-7B
shape from 20 clients, from the files of the updates to that of the next state, in a fresh process. All values are
random float32 from a seed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import PeakMemory
from benchmarks.report import print_report
from benchmarks.shapes import llama_facts
from federated import registry
from federated.contract import ClientUpdate, RoundFacts
from federated.maths.generator import stream_key
from federated.maths.low_rank import LowRankProduct, Search, cheapest, stack, truncate
from federated.payloads.payload import LazyTensor, Payload
from federated.trainable import Lora

_TARGET_SPEEDUP = 250.0
_TARGET_DIFFERENCE = 2e-5
_TARGET_WIDE_SPEEDUP = 3.0
_TARGET_WIDE_ENERGY_LOST = 1e-3

_RANKS = (4, 8, 16, 32, 64)
_SHARED_DIRECTIONS = 256
_NOISE = 0.02
_KEY = stream_key(0, "benchmark")

Pair = tuple[Tensor, Tensor]


def gaussian_factors(size: int, ranks: Sequence[int], seed: int) -> list[Pair]:
    """Flat factors: all directions are equally strong."""
    generator = torch.Generator().manual_seed(seed)
    return [(_normal(size, rank, generator), _normal(rank, size, generator)) for rank in ranks]


def shared_factors(size: int, ranks: Sequence[int], seed: int) -> list[Pair]:
    """Factors whose sum has singular values i^-1/2 over shared directions, with proportional noise."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(_normal(size, _SHARED_DIRECTIONS, generator)).Q for _ in range(2))
    weights = torch.arange(1, _SHARED_DIRECTIONS + 1).float() ** -0.25
    pairs = []
    for rank in ranks:
        mixture = torch.linalg.qr(_normal(_SHARED_DIRECTIONS, rank, generator)).Q
        b, a = left @ (weights[:, None] * mixture), (mixture.T * weights) @ right.T
        pairs.append((_noisy(b, generator), _noisy(a, generator)))
    return pairs


def _noisy(factor: Tensor, generator: torch.Generator) -> Tensor:
    noise = _normal(factor.shape[0], factor.shape[1], generator)
    return factor + noise * (_NOISE * float(factor.norm() / noise.norm()))


def _normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator)


def dense_truncate(pairs: Sequence[Pair], rank: int) -> LowRankProduct:
    """The method of the authors: the full SVD of the sum of the products."""
    total = torch.zeros(len(pairs[0][0]), pairs[0][1].shape[1])
    for b, a in pairs:
        total += b @ a
    u, sigma, vh = torch.linalg.svd(total, full_matrices=False)
    squares = sigma.double().square()
    return LowRankProduct(u[:, :rank] * sigma[:rank], vh[:rank], float(squares[:rank].sum()), float(squares.sum()))


def lowrank_truncate(pairs: Sequence[Pair], rank: int) -> LowRankProduct:
    """torch's randomized SVD of the formed sum, with our oversampling and number of iterations."""
    b, a = stack(pairs)
    product = b @ a
    with torch.random.fork_rng():
        torch.manual_seed(0)
        u, sigma, v = torch.svd_lowrank(product, q=rank + Search().oversampling, niter=2)
    energy = float(sigma[:rank].double().square().sum())
    return LowRankProduct(u[:, :rank] * sigma[:rank], v[:, :rank].T, energy, float(product.double().square().sum()))


def ours(pairs: Sequence[Pair], rank: int) -> LowRankProduct:
    """Stack and truncate by the cheapest path, as the server half does."""
    b, a = stack(pairs)
    return truncate(b, a, rank, _KEY)


def _time(work: Callable[[], LowRankProduct], repeats: int) -> tuple[float, LowRankProduct]:
    """Median seconds, and the last result."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def _one_matrix(size: int, repeats: int) -> dict[str, Any]:
    ranks = (*_RANKS, *_RANKS, 8)
    pairs, rank = gaussian_factors(size, ranks, 1), max(ranks)
    fast, approximation = _time(lambda: ours(pairs, rank), repeats)
    slow, exact = _time(lambda: dense_truncate(pairs, rank), 1)
    product = exact.b @ exact.a
    report = {
        "size": size,
        "sum_of_ranks": sum(ranks),
        "rank": rank,
        "path": cheapest(size, size, sum(ranks), rank),
        "seconds": fast,
        "dense_seconds": slow,
        "speedup": slow / fast,
        "difference": float((approximation.b @ approximation.a - product).norm() / product.norm()),
    }
    print(f"one matrix: {json.dumps(report)}", flush=True)
    return report


def _wide(size: int, width: int, rank: int, kind: str, repeats: int) -> dict[str, Any]:
    clients = 80
    ranks = [width // clients + (client < width % clients) for client in range(clients)]
    pairs = (shared_factors if kind == "shared" else gaussian_factors)(size, ranks, 2)
    fast, approximation = _time(lambda: ours(pairs, rank), repeats)
    peer, by_peer = _time(lambda: lowrank_truncate(pairs, rank), repeats)
    slow, exact = _time(lambda: dense_truncate(pairs, rank), 1)
    best = exact.energy / exact.total_energy
    report = {
        "size": size,
        "sum_of_ranks": width,
        "rank": rank,
        "path": cheapest(size, size, width, rank),
        "seconds": fast,
        "dense_seconds": slow,
        "svd_lowrank_seconds": peer,
        "speedup": slow / fast,
        "svd_lowrank_speedup": slow / peer,
        "exact_energy": best,
        "energy_lost": best - approximation.energy / approximation.total_energy,
        "svd_lowrank_energy_lost": best - by_peer.energy / by_peer.total_energy,
    }
    print(f"wide stack, {kind}: {json.dumps(report)}", flush=True)
    return report


# ---- a whole adapter


def _server() -> Any:
    return registry.server_half("flexlora", registry.make_config("flexlora", {}), Lora(r=max(_RANKS)))


def make_files(folder: Path, clients: int, layers: int) -> None:
    """Write the state of a first round and one update for each client."""
    facts = llama_facts(layers, max(_RANKS), ("self_attn.q_proj", "self_attn.v_proj"))
    _server().start(facts, 0, None).write(folder / "state.safetensors")
    for client in range(clients):
        rank, generator = _RANKS[client % len(_RANKS)], torch.Generator().manual_seed(client)
        shapes = {
            tensor.name: tuple(rank if size == max(_RANKS) else size for size in tensor.shape)
            for tensor in facts.tensors
        }
        make = partial(_small_change, generator=generator)
        tensors = {name: LazyTensor(torch.float32, shape, partial(make, shape)) for name, shape in shapes.items()}
        Payload(tensors).write(folder / f"update-{client}.safetensors")


def _small_change(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) * 0.01


def aggregate(folder: Path, clients: int) -> dict[str, Any]:
    """Aggregate in this process as the conductor does. Returns seconds, peak anonymous bytes and metrics."""
    state = Payload.open(folder / "state.safetensors")
    paths = [folder / f"update-{client}.safetensors" for client in range(clients)]
    updates = [ClientUpdate(i, 10, 10.0, Payload.open(path), {}, None) for i, path in enumerate(paths)]
    server = _server()
    with PeakMemory() as memory:
        start = time.perf_counter()
        outcome = server.aggregate(state, updates, RoundFacts(1, "train", 10, clients))
        outcome.state.write(folder / "next.safetensors")
        seconds = time.perf_counter() - start
    update_bytes = sum(path.stat().st_size for path in paths)
    return {"seconds": seconds, "peak_bytes": memory.peak_bytes, "update_bytes": update_bytes, **outcome.metrics}


def _whole_adapter(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    make_files(folder, options.clients, options.layers)
    command = [sys.executable, "-m", "benchmarks.flexlora_aggregation", "--measure", str(folder)]
    command += ["--clients", str(options.clients), "--threads", str(options.threads)]
    process = subprocess.run(command, check=True, capture_output=True, text=True)
    report: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    print(f"whole adapter: {json.dumps(report)}", flush=True)
    return {"clients": options.clients, "layers": options.layers, **report}


def main() -> None:
    """The command line. The program starts itself with `--measure` in a fresh process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flexlora_aggregation", description=__doc__)
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the one matrix")
    parser.add_argument("--wide-size", type=int, default=2048)
    parser.add_argument("--wide-ranks", type=int, default=2760, help="sum of the ranks in the wide stack")
    parser.add_argument("--wide-rank", type=int, default=200, help="rank to which the wide stack is truncated")
    parser.add_argument("--clients", type=int, default=20, help="clients of the whole adapter")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5, help="runs of the fast paths; the dense one runs once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None, help="folder for the files (about 1.1 GB)")
    parser.add_argument("--measure", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        print(json.dumps(aggregate(options.measure, options.clients)))
        return
    one_matrix = _one_matrix(options.size, options.repeats)
    wide, flat = (
        _wide(options.wide_size, options.wide_ranks, options.wide_rank, kind, options.repeats)
        for kind in ("shared", "flat")
    )
    with tempfile.TemporaryDirectory(prefix="flexlora-", dir=options.folder) as folder:
        whole_adapter = _whole_adapter(options, Path(folder))
    holds = (
        one_matrix["speedup"] >= _TARGET_SPEEDUP
        and one_matrix["difference"] <= _TARGET_DIFFERENCE
        and wide["speedup"] >= _TARGET_WIDE_SPEEDUP
        and wide["energy_lost"] <= _TARGET_WIDE_ENERGY_LOST
    )
    details = {
        "threads": options.threads,
        "one_matrix": one_matrix | {"difference_target": _TARGET_DIFFERENCE},
        "wide_stack": wide | {"speedup_target": _TARGET_WIDE_SPEEDUP, "energy_lost_target": _TARGET_WIDE_ENERGY_LOST},
        "wide_stack_of_flat_factors": flat,
        "whole_adapter": whole_adapter,
    }
    print_report(
        "flexlora_aggregation", one_matrix["speedup"], "times", target=_TARGET_SPEEDUP, holds=holds, details=details
    )


if __name__ == "__main__":
    main()
