"""Time and memory of one round's aggregation in the coordinator: `python -m benchmarks.aggregation`.

The measured work is the conductor's: open the files of the updates, aggregate, write the next state. The updates are
LoRA of a LLaMA-7B shape (rank 16, all seven linear maps of 32 layers, bfloat16, 80 MB each). They are random,
generated for the run, and in the page cache. Each measurement runs in a fresh process. Two alternatives are measured
at `--peer-clients`: a weighted mean of `torch.stack` in float32 after loading every file, and the sum over lists of
arrays as in Flower's strategies.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.memory import PeakMemory
from benchmarks.report import print_report
from benchmarks.shapes import llama_facts
from federated import registry
from federated.contract import ClientUpdate, RoundFacts
from federated.payloads.payload import LazyTensor, Payload
from federated.trainable import Lora

_TARGET_SECONDS = 2.5
_TARGET_BYTES = 256 * 1024**2
_TARGET_GROWTH = 1.1


def make_files(folder: Path, clients: int, layers: int, rank: int) -> int:
    """Write the state and one update per client. Returns the size of an update in bytes."""
    facts = llama_facts(layers, rank)
    config = registry.make_config("fedavg", {"upload_dtype": "bfloat16"})
    state = registry.server_half("fedavg", config, Lora(r=rank)).start(facts, 0, None)
    state.write(folder / "state.safetensors")
    for client in range(clients):
        generator = torch.Generator().manual_seed(client)
        tensors = {tensor.name: _random_tensor(tensor.shape, generator) for tensor in facts.tensors}
        Payload(tensors).write(_update_path(folder, client))
    return _update_path(folder, 0).stat().st_size


def _random_tensor(shape: tuple[int, ...], generator: torch.Generator) -> LazyTensor:
    return LazyTensor(
        torch.bfloat16, shape, lambda: (torch.randn(shape, generator=generator) * 0.01).to(torch.bfloat16)
    )


def _update_path(folder: Path, client: int) -> Path:
    return folder / f"update-{client}.safetensors"


def _weight(client: int) -> int:
    return 100 + 7 * client


def aggregate_exactly(folder: Path, clients: int, threads: int) -> None:
    """Aggregate as the conductor does."""
    config = registry.make_config("fedavg", {"upload_dtype": "bfloat16"})
    server = registry.server_half("fedavg", config, Lora(r=16))
    state = Payload.open(folder / "state.safetensors")
    updates = [
        ClientUpdate(client, _weight(client), _weight(client), Payload.open(_update_path(folder, client)), {}, None)
        for client in range(clients)
    ]
    outcome = server.aggregate(state, updates, RoundFacts(1, "train", 10, clients))
    outcome.state.write(folder / "next.safetensors", threads=threads)


def aggregate_by_stack(folder: Path, clients: int, threads: int) -> None:
    """Load everything, then take the weighted mean of one `torch.stack` per tensor in float32."""
    torch.set_num_threads(threads)
    state = load_file(folder / "state.safetensors")
    updates = [load_file(_update_path(folder, client)) for client in range(clients)]
    weights = torch.tensor([_weight(client) for client in range(clients)], dtype=torch.float32)
    weights = (weights / weights.sum())[:, None, None]
    for name in state:
        stack = torch.stack([update[name].float() for update in updates])
        state[name] += (stack * weights).sum(dim=0)
    save_file(state, folder / "peer.safetensors")


def aggregate_by_lists(folder: Path, clients: int, threads: int) -> None:
    """Multiply and add lists of float32 arrays, as Flower's `aggregate` does."""
    torch.set_num_threads(threads)
    state = load_file(folder / "state.safetensors")
    updates = [load_file(_update_path(folder, client)) for client in range(clients)]
    results = [([update[name].float().numpy() for name in state], _weight(i)) for i, update in enumerate(updates)]
    del updates
    total = sum(weight for _, weight in results)
    products = [[layer * weight for layer in arrays] for arrays, weight in results]
    means = [reduce(np.add, layers) / total for layers in zip(*products, strict=True)]
    sums = {name: state[name] + torch.from_numpy(mean) for name, mean in zip(state, means, strict=True)}
    save_file(sums, folder / "peer.safetensors")


METHODS: dict[str, Callable[[Path, int, int], None]] = {
    "exact": aggregate_exactly,
    "stack": aggregate_by_stack,
    "lists": aggregate_by_lists,
}


def measure_here(method: str, folder: Path, clients: int, threads: int, repeats: int) -> dict[str, object]:
    """Wall and processor seconds of each repeat in this process, and the peak of anonymous bytes over all repeats."""
    seconds, processor_seconds = [], []
    with PeakMemory() as memory:
        for _ in range(repeats):
            start, processor_start = time.perf_counter(), time.process_time()
            METHODS[method](folder, clients, threads)
            seconds.append(time.perf_counter() - start)
            processor_seconds.append(time.process_time() - processor_start)
    return {"seconds": seconds, "processor_seconds": processor_seconds, "peak_bytes": memory.peak_bytes}


@dataclass(frozen=True)
class Measurement:
    """Medians over repeats and fresh processes. The thread stacks alone differ by a megabyte between processes."""

    seconds: float
    processor_seconds: float
    peak_bytes: int


def _measure(method: str, folder: Path, clients: int, options: argparse.Namespace) -> Measurement:
    command = [sys.executable, "-m", "benchmarks.aggregation", "--measure", method, "--folder", str(folder)]
    command += ["--clients", str(clients), "--threads", str(options.threads), "--repeats", str(options.repeats)]
    samples: dict[str, list[float]] = {"seconds": [], "processor_seconds": [], "peak_bytes": []}
    for _ in range(options.processes if method == "exact" else 1):
        process = subprocess.run(command, check=True, capture_output=True, text=True)
        sample = json.loads(process.stdout.splitlines()[-1])
        samples["seconds"] += sample["seconds"]
        samples["processor_seconds"] += sample["processor_seconds"]
        samples["peak_bytes"].append(sample["peak_bytes"])
    medians = {name: statistics.median(values) for name, values in samples.items()}
    measurement = Measurement(medians["seconds"], medians["processor_seconds"], int(medians["peak_bytes"]))
    memory = f"{measurement.peak_bytes / 1024**2:8.1f} MiB anonymous above base"
    times = f"{measurement.seconds:6.2f} s ({measurement.processor_seconds:6.2f} s of processors)"
    print(f"{method:>6}, {clients:3} clients: {times}, {memory}", flush=True)
    return measurement


def _compare(options: argparse.Namespace, folder: Path) -> None:
    print(f"writing {options.clients} updates to {folder}", flush=True)
    update_bytes = make_files(folder, options.clients, options.layers, options.rank)
    all_clients = _measure("exact", folder, options.clients, options)
    few = _measure("exact", folder, options.few_clients, options)
    ours = _measure("exact", folder, options.peer_clients, options)
    growth = all_clients.peak_bytes / few.peak_bytes
    details = {
        "clients": options.clients,
        "update_bytes": update_bytes,
        "threads": options.threads,
        "processor_seconds": round(all_clients.processor_seconds, 3),
        "peak_bytes": all_clients.peak_bytes,
        "peak_bytes_target": _TARGET_BYTES,
        f"peak_bytes_at_{options.few_clients}_clients": few.peak_bytes,
        "memory_growth": round(growth, 3),
        "memory_growth_target": _TARGET_GROWTH,
        f"at_{options.peer_clients}_clients": asdict(ours),
        f"peers_at_{options.peer_clients}_clients": _peers(options, folder, ours),
    }
    seconds = all_clients.seconds
    holds = seconds <= _TARGET_SECONDS and all_clients.peak_bytes <= _TARGET_BYTES and growth <= _TARGET_GROWTH
    print_report("aggregation", seconds, "s", target=_TARGET_SECONDS, holds=holds, details=details)


def _peers(options: argparse.Namespace, folder: Path, ours: Measurement) -> dict[str, object]:
    """Measurements of the alternatives, which unlike ours do not hash their output."""
    peers: dict[str, object] = {}
    for method in ("stack", "lists"):
        peer = _measure(method, folder, options.peer_clients, options)
        ratios = {
            "seconds_ratio": round(peer.seconds / ours.seconds, 2),
            "memory_ratio": round(peer.peak_bytes / ours.peak_bytes, 1),
        }
        peers[method] = asdict(peer) | ratios
    return peers


def main() -> None:
    """The command line. The program starts itself with `--measure` in a fresh process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aggregation", description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument(
        "--few-clients", type=int, default=10, help="clients of the run whose memory is the reference"
    )
    parser.add_argument("--peer-clients", type=int, default=10, help="clients at which the alternatives are measured")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2, help="aggregations in one process")
    parser.add_argument("--processes", type=int, default=3, help="fresh processes for each number of clients")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None, help="folder for the files (about 4.5 GB)")
    parser.add_argument("--measure", choices=sorted(METHODS), default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(
            json.dumps(
                measure_here(options.measure, options.folder, options.clients, options.threads, options.repeats)
            )
        )
        return
    with tempfile.TemporaryDirectory(prefix="aggregation-", dir=options.folder) as folder:
        _compare(options, Path(folder))


if __name__ == "__main__":
    main()
