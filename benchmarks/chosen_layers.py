"""Savings in bytes and seconds when only half of the layers are sent: `python -m benchmarks.chosen_layers`.

The model is MiniLM with LoRA (r 8 on query and value). The bytes of a round's update are compared with plain
averaging of the same model: the share of the factors must be exactly that of the layers. The seconds of a local epoch
that trains only the upper half of the layers are compared with those of all layers, in turn in one run. The backward
pass ends below the lowest trained layer.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.fisher_scores import open_shape
from benchmarks.report import print_report
from federated.algorithm_kit.local_training import train
from federated.contract import ClientFacts, ClientUpdate, GradientConfig, RoundFacts
from federated.payloads.payload import Payload
from federated.registry import make_config, server_half
from federated.session import TrainingSession
from federated.trainable import Lora, ModelFacts

_TARGET_SECONDS_RATIO = 0.9

_LORA = Lora(r=8, lora_alpha=16, target_modules=("query", "value"))
_CLIENTS = [ClientFacts(0, "one", 1, {}, {}, None, 0)]


def update_bytes(algorithm: str, model: ModelFacts, config: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of the factors and of the head in an update of the first train round."""
    server = server_half(algorithm, make_config(algorithm, config), _LORA)
    state = server.start(model, 0, None)
    if state.facts.get("phase") == "prepare":
        scores = Payload({"layer_scores": torch.arange(model.layers).float()})
        preparation = server.aggregate(
            state, [ClientUpdate(0, 1, 1.0, scores, {}, None)], RoundFacts(1, "prepare", 1, 1)
        )
        state = preparation.state
    expects = server.plan(state, _CLIENTS, RoundFacts(1, "train", 1, 1))[0].facts["expects"]
    sizes = {"factors": 0, "head": 0}
    for name, row in expects.items():
        sizes["factors" if ".lora_" in name else "head"] += 4 * torch.Size(row["shape"]).numel()
    return sizes


def lower_half(model: ModelFacts) -> list[str]:
    """Names of the factors in the lower half of the layers."""
    halves = [f".layer.{layer}." for layer in range(model.layers // 2)]
    return [tensor.name for tensor in model.tensors if any(half in tensor.name for half in halves)]


def seconds_of_epochs(session: TrainingSession, frozen_sets: Sequence[Sequence[str]], turns: int) -> list[float]:
    """Median seconds of an epoch for each set of frozen tensors, measured in turn after one turn of warm-up."""
    config = GradientConfig(batch_size=16, learning_rate=1e-9)
    samples: list[list[float]] = [[] for _ in frozen_sets]
    for turn in range(turns + 1):
        for index in sorted(range(len(frozen_sets)), reverse=turn % 2 == 1):
            session.train_all_except(frozen_sets[index])
            start = time.perf_counter()
            train(session, config)
            if turn:
                samples[index].append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in samples]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chosen_layers", description=__doc__)
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="layers-") as folder:
        session = open_shape(Path(folder), "subj", options.examples, options.device)
        half, whole = seconds_of_epochs(session, [lower_half(session.facts), ()], options.turns)
    layers = session.facts.layers
    plain = update_bytes("fedavg", session.facts, {})
    shares = {}
    for count in range(1, layers + 1):
        config = {"layer_count": "fixed", "layer_share": count / layers}
        shares[count] = update_bytes("fibecfed", session.facts, config)
    exact = all(sizes["factors"] * layers == plain["factors"] * count for count, sizes in shares.items())
    same_head = all(sizes["head"] == plain["head"] for sizes in shares.values())
    print(json.dumps({"bytes": shares, "plain": plain}))
    print_report(
        "chosen_layers",
        half / whole,
        "times the epoch of all layers",
        target=_TARGET_SECONDS_RATIO,
        holds=half / whole <= _TARGET_SECONDS_RATIO and exact and same_head,
        details={
            "threads": options.threads,
            "half_seconds": half,
            "all_seconds": whole,
            "layers": layers,
            "bytes_exactly_the_share_of_layers": exact,
            "plain_bytes": plain,
            "half_bytes": shares[layers // 2],
        },
    )


if __name__ == "__main__":
    main()
