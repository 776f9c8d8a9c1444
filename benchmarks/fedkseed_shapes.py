"""Speed of rebuilding the weights of large decoders from K scalars: `python -m benchmarks.fedkseed_shapes`.

The weights are random bfloat16 in the shapes of LLaMA-1.3B and 7B, and K = 4096. They lie on a GPU if there is one;
on a CPU only 1.3B is measured. One run compares three methods: structured directions, the explicit sum of K
directions from the counter-based generator, and that of the authors, a seeded `torch.randn` for every direction and
tensor. For the two explicit methods `--explicit` directions are timed and scaled to K. The figure is the smallest
ratio of the authors' method to the structured one.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.report import print_report
from federated.maths.directions import Kind, directions

_TARGET_RATIO = 100.0
_SEED = 5


@dataclass(frozen=True)
class Decoder:
    """Layers and widths of a LLaMA."""

    layers: int
    hidden: int
    inner: int
    vocabulary: int = 32_000

    def sizes(self) -> dict[str, int]:
        """Elements of each linear map, embedding and norm, by name."""
        elements = {
            "embed_tokens": self.vocabulary * self.hidden,
            "norm": self.hidden,
            "lm_head": self.vocabulary * self.hidden,
        }
        for layer in range(self.layers):
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                elements[f"layers.{layer}.{name}"] = self.hidden * self.hidden
            for name in ("gate_proj", "up_proj", "down_proj"):
                elements[f"layers.{layer}.{name}"] = self.hidden * self.inner
            for name in ("input_layernorm", "post_attention_layernorm"):
                elements[f"layers.{layer}.{name}"] = self.hidden
        return elements


SHAPES = {"1.3b": Decoder(24, 2048, 5504), "7b": Decoder(32, 4096, 11008), "tiny": Decoder(2, 64, 160, 500)}


def weights_of(decoder: Decoder, device: torch.device) -> dict[str, Tensor]:
    """Random flat bfloat16 tensors on the device."""
    draw = torch.Generator(device).manual_seed(0)
    return {
        name: torch.empty(size, dtype=torch.bfloat16, device=device).normal_(0, 0.02, generator=draw)
        for name, size in decoder.sizes().items()
    }


def rebuild(kind: Kind, weights: Mapping[str, Tensor], coefficients: Tensor, device: torch.device) -> None:
    """Subtract from the weights the sum of all directions with a coefficient other than zero, as a client does."""
    sizes = {name: value.numel() for name, value in weights.items()}
    directions(kind, _SEED, len(coefficients)).over(sizes, device).subtract(coefficients, weights)


def rebuild_as_the_authors(weights: Mapping[str, Tensor], coefficients: Tensor, device: torch.device) -> None:
    """Subtract a seeded `torch.randn` in the dtype of the weights for each direction and tensor."""
    for seed, coefficient in enumerate(coefficients.tolist()):
        draw = torch.Generator(device).manual_seed(seed)
        for value in weights.values():
            direction = torch.randn(value.shape, generator=draw, device=device, dtype=value.dtype)
            value.sub_(direction, alpha=coefficient)


def measure(decoder: Decoder, device: torch.device, count: int, repeats: int, explicit: int) -> dict[str, float]:
    """Seconds of the three methods: medians over the repeats in turn, after one rebuild of warm-up."""
    weights = weights_of(decoder, device)
    draw = torch.Generator().manual_seed(1)
    coefficients = torch.randn(count, generator=draw) * 1e-6
    few = coefficients * (torch.arange(count) < explicit)
    ways: dict[str, Callable[[], None]] = {
        "structured": lambda: rebuild("hadamard", weights, coefficients, device),
        "explicit": lambda: rebuild("rademacher", weights, few, device),
        "authors": lambda: rebuild_as_the_authors(weights, coefficients[:explicit], device),
    }
    samples: dict[str, list[float]] = {name: [] for name in ways}
    ways["structured"]()
    for _ in range(repeats):
        for name, way in ways.items():
            samples[name].append(_seconds(way, device))
    ours, scale = statistics.median(samples["structured"]), count / explicit
    scaled_seconds = {name: statistics.median(samples[name]) * scale for name in ("explicit", "authors")}
    return {
        "elements": float(sum(decoder.sizes().values())),
        "structured_seconds": ours,
        "explicit_seconds_scaled": scaled_seconds["explicit"],
        "authors_seconds_scaled": scaled_seconds["authors"],
        "ratio_to_explicit": scaled_seconds["explicit"] / ours,
        "ratio_to_authors": scaled_seconds["authors"] / ours,
    }


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    _finish(device)
    start = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fedkseed_shapes", description=__doc__)
    gpu = torch.cuda.is_available()
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1.3b", "7b"] if gpu else ["1.3b"])
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--candidates", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5 if gpu else 1)
    parser.add_argument("--explicit", type=int, default=8 if gpu else 1, help="explicit directions that are timed")
    options = parser.parse_args()
    device, results = torch.device(options.device), {}
    with torch.inference_mode():
        for shape in options.shapes:
            times = measure(SHAPES[shape], device, options.candidates, options.repeats, options.explicit)
            results[shape] = {name: float(f"{value:.4g}") for name, value in times.items()}
            print(f"{shape}: {json.dumps(results[shape])}", flush=True)
    figure = min(times["ratio_to_authors"] for times in results.values())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    details = {
        "device": name,
        "candidates": options.candidates,
        "directions_timed": options.explicit,
        "shapes": results,
    }
    print_report("fedkseed_shapes", figure, "x", target=_TARGET_RATIO, holds=figure >= _TARGET_RATIO, details=details)


if __name__ == "__main__":
    main()
