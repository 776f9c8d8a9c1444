"""How much of a model its Hessian says must be kept: Lanczos, spectral density, plateau and eigengap.

Golub and Welsch, "Calculation of Gauss quadrature rules", 1969: of a symmetric operator's spectrum, as seen from one
start vector, k steps of Lanczos give k points (Ritz values) with weights that sum to one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from federated.maths.generator import Key, words
from federated.maths.hessian_cost import LANCZOS_STEPS

# Width of the Gaussian around each Ritz value, as a share of the largest magnitude: sqrt(1e-5).
_BLUR = 1e-5**0.5
_FIRST_STEP = 0.1
_FLAT = 0.005
_FLAT_VALUES = 4


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Ritz values (k,), ascending, and their weights (k,), which sum to one; float64 on the CPU."""

    values: Tensor
    weights: Tensor

    def mass_below(self, threshold: float) -> float:
        """Share of the spectrum below `threshold`, each Ritz value blurred by a Gaussian."""
        width = _BLUR * float(self.values.abs().max())
        if width == 0:
            return float(threshold >= 0)
        return float((self.weights * torch.special.ndtr((threshold - self.values) / width)).sum())


def rademacher(key: Key, count: int, device: torch.device | str = "cpu") -> Tensor:
    """A start vector for `lanczos`: (count,) of signs, float32, the same on every device."""
    return (words(key, 0, count, device) >> 31).float() * 2 - 1


def lanczos(apply: Callable[[Tensor], Tensor], start: Tensor, steps: int = LANCZOS_STEPS) -> Spectrum:
    """The spectrum of the symmetric operator `apply`, (n,) -> (n,), as seen from `start` (n,), of any length but 0.

    Every new vector is made orthogonal to all earlier ones, twice: `steps` vectors of n are kept. Ends early where
    the start spans no more. Raises ValueError for a start of zeros, or if the operator gives what is not finite.
    """
    size = float(start.norm())
    if not size > 0:
        raise ValueError("the Lanczos iteration cannot start from a vector of zeros")
    basis = torch.empty(min(steps, len(start)), len(start), dtype=start.dtype, device=start.device)
    basis[0] = start / size
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(len(basis)):
        image = apply(basis[step])
        diagonal.append(float(image @ basis[step]))
        if not math.isfinite(diagonal[-1]):
            raise ValueError(f"the operator is not finite at step {step + 1} of the Lanczos iteration")
        for _ in range(2):
            image = image - basis[: step + 1].T @ (basis[: step + 1] @ image)
        left = float(image.norm())
        if step + 1 == len(basis) or left <= _rounding(start) * max(map(abs, diagonal + beside)):
            break
        beside.append(left)
        basis[step + 1] = image / left
    return _ritz(diagonal, beside[: len(diagonal) - 1])


def plateau(spectrum: Spectrum) -> float:
    """The share kept, `1 - mass below t`, at the first plateau of a scan over t from 0 on, in [0, 1].

    Steps of 0.1; where less than half of the share at 0 is left the scan starts again with half the step. A plateau
    is four values in a row that differ by less than 0.005.
    """
    step = _FIRST_STEP
    first = 1 - spectrum.mass_below(0.0)
    while True:
        kept = [first]
        while kept[-1] >= first / 2:
            kept.append(1 - spectrum.mass_below(len(kept) * step))
            row = kept[-_FLAT_VALUES:]
            if len(row) == _FLAT_VALUES and max(row) - min(row) < _FLAT:
                return min(max(row[-1], 0.0), 1.0)
        step /= 2


def eigengap(spectrum: Spectrum, lipschitz: float) -> float:
    """The share of the spectrum above its first gap, from below, wider than `4 * lipschitz`; 1 without one."""
    wide = (spectrum.values.diff() > 4 * lipschitz).nonzero()
    if len(wide) == 0:
        return 1.0
    return float(spectrum.weights[int(wide[0]) + 1 :].sum())


def lipschitz(gradient_change: Tensor, hessian_times_step: Tensor, step: Tensor) -> float:
    """How far the gradient is from linear over `step`: `|H d - (g(w + d) - g(w))| / |d|`, all (n,).

    Estimates the Lipschitz constant that `eigengap` asks for. 0 for a quadratic, and for a step of zeros.
    """
    length = float(step.norm())
    return float((hessian_times_step - gradient_change).norm()) / length if length > 0 else 0.0


def number_of_layers(share: float, layers: int, factor: float = 1.0, most: int | None = None) -> int:
    """How many of `layers` a share to keep comes to: `factor * share * layers`, rounded, 1 to `most` (or all)."""
    return max(1, min(math.floor(factor * share * layers + 0.5), layers if most is None else most))


def _rounding(start: Tensor) -> float:
    return 100 * torch.finfo(start.dtype).eps


def _ritz(diagonal: list[float], beside: list[float]) -> Spectrum:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        off = torch.tensor(beside, dtype=torch.float64)
        matrix += torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return Spectrum(values, vectors[0].square())
