"""Spectral density of a Hessian by Lanczos iteration, and two rules for the share to keep: plateau and eigengap.

Golub and Welsch, "Calculation of Gauss quadrature rules", 1969: k steps of Lanczos from one start vector approximate
the spectrum of a symmetric operator by k points (Ritz values) with weights that sum to one.
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
    """Ritz values (k,), ascending, and their weights (k,), which sum to one. Both are float64 on the CPU."""

    values: Tensor
    weights: Tensor

    def mass_below(self, threshold: float) -> float:
        """Share of the spectrum below `threshold`, with each Ritz value blurred by a Gaussian."""
        width = _BLUR * float(self.values.abs().max())
        if width == 0:
            return float(threshold >= 0)
        return float((self.weights * torch.special.ndtr((threshold - self.values) / width)).sum())


def rademacher(key: Key, count: int, device: torch.device | str = "cpu") -> Tensor:
    """A start vector for `lanczos`: (count,) random signs, float32, the same on every device."""
    return (words(key, 0, count, device) >> 31).float() * 2 - 1


def lanczos(apply: Callable[[Tensor], Tensor], start: Tensor, steps: int = LANCZOS_STEPS) -> Spectrum:
    """The spectrum of the symmetric operator `apply`, (n,) -> (n,), from the start vector `start`: (n,).

    Every new vector is orthogonalized against all earlier ones, twice, so `steps` vectors are stored. The iteration
    ends early if it exhausts the Krylov space. Raises ValueError for a start vector of zeros or a result that is not
    finite.
    """
    size = float(start.norm())
    if not size > 0:
        raise ValueError("the Lanczos iteration cannot start from a vector of zeros")
    basis = torch.empty(min(steps, len(start)), len(start), dtype=start.dtype, device=start.device)
    basis[0] = start / size
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    for step in range(len(basis)):
        image = apply(basis[step])
        diagonal.append(float(image @ basis[step]))
        if not math.isfinite(diagonal[-1]):
            raise ValueError(f"the operator is not finite at step {step + 1} of the Lanczos iteration")
        for _ in range(2):
            image = image - basis[: step + 1].T @ (basis[: step + 1] @ image)
        residual = float(image.norm())
        if step + 1 == len(basis) or residual <= _rounding(start) * max(map(abs, diagonal + off_diagonal)):
            break
        off_diagonal.append(residual)
        basis[step + 1] = image / residual
    return _ritz(diagonal, off_diagonal[: len(diagonal) - 1])


def plateau(spectrum: Spectrum) -> float:
    """The share to keep, `1 - mass below t`, at the first plateau of a scan over t from 0, in [0, 1].

    The step is 0.1. If the share falls below half of that at 0, the scan restarts with half the step. A plateau is
    four consecutive values that differ by less than 0.005.
    """
    step = _FIRST_STEP
    first = 1 - spectrum.mass_below(0.0)
    while True:
        shares = [first]
        while shares[-1] >= first / 2:
            shares.append(1 - spectrum.mass_below(len(shares) * step))
            row = shares[-_FLAT_VALUES:]
            if len(row) == _FLAT_VALUES and max(row) - min(row) < _FLAT:
                return min(max(row[-1], 0.0), 1.0)
        step /= 2


def eigengap(spectrum: Spectrum, lipschitz: float) -> float:
    """The share of the spectrum above its lowest gap wider than `4 * lipschitz`. 1 without such a gap."""
    wide = (spectrum.values.diff() > 4 * lipschitz).nonzero()
    if len(wide) == 0:
        return 1.0
    return float(spectrum.weights[int(wide[0]) + 1 :].sum())


def lipschitz(gradient_change: Tensor, hessian_times_step: Tensor, step: Tensor) -> float:
    """Deviation of the gradient from linearity over `step`: `|H d - (g(w + d) - g(w))| / |d|`, all (n,).

    It estimates the Lipschitz constant for `eigengap`. 0 for a quadratic, and for a step of zeros.
    """
    length = float(step.norm())
    return float((hessian_times_step - gradient_change).norm()) / length if length > 0 else 0.0


def number_of_layers(share: float, layers: int, factor: float = 1.0, most: int | None = None) -> int:
    """Number of layers for a share to keep: `factor * share * layers`, rounded, from 1 to `most` (or all)."""
    return max(1, min(math.floor(factor * share * layers + 0.5), layers if most is None else most))


def _rounding(start: Tensor) -> float:
    return 100 * torch.finfo(start.dtype).eps


def _ritz(diagonal: list[float], off_diagonal: list[float]) -> Spectrum:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if off_diagonal:
        off = torch.tensor(off_diagonal, dtype=torch.float64)
        matrix += torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return Spectrum(values, vectors[0].square())
