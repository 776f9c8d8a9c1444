"""Best low-rank approximation of a sum of products. The sum itself is computed only if that is cheaper.

W = sum_i B_i A_i is the product of the stacks b = [B_1 B_2 ...] and a = [A_1; A_2; ...]. For a narrow stack, QR of
both stacks leaves the SVD of a core as wide as the stack, which is exact. For a stack about as wide as the matrix, a
randomized range finder (Halko, Martinsson, Tropp, "Finding Structure with Randomness", SIAM Review 2011) computes the
leading part. Factors are always b: (out, k), which contains the singular values, and a: (k, in), orthonormal rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from federated.maths.generator import Key, words

Path = Literal["stacked", "dense", "randomized"]

# Cost of an operation in multiplications of a matrix product. Measured in float32 on two cores.
_FACTORIZATION = 3.0
_SVD = 15.0
# An exact path is preferred up to this multiple of the randomized path's work.
_EXACT_PREFERENCE = 3.0


@dataclass(frozen=True, slots=True)
class LowRankProduct:
    """The leading part `b @ a` of a matrix W. b: (out, k), a: (k, in).

    Row i of `a` is a direction of the inputs, column i of `b` its image times its singular value. If the rank of W is
    below k, the remaining columns are zero and the rows random. `energy` is the squared Frobenius norm of `b @ a`,
    `total_energy` that of W.
    """

    b: Tensor
    a: Tensor
    energy: float
    total_energy: float


@dataclass(frozen=True, slots=True)
class Search:
    """Parameters of the randomized path."""

    oversampling: int = 100
    power_iterations: int = 2


def truncate(
    b: Tensor,
    a: Tensor,
    rank: int,
    key: Key,
    *,
    like: Tensor | None = None,
    search: Search | None = None,
    path: Path | None = None,
) -> LowRankProduct:
    """The best approximation of rank `rank` of `b @ a` (FlexLoRA's redistribution).

    b: (out, r), a: (r, in), float32 or float64, any r. The singular values go into the b of the result. The rows of
    its a are orthonormal. If `b @ a` has a lower rank, `key` generates the missing rows, so that they stay trainable.
    Signs follow the rows of `like` (an earlier a). Without `like` each row's largest entry is positive. `path` None:
    `cheapest`. Raises ValueError if `rank` is not in 1 ... min(out, in), for incompatible shapes, and for NaN or
    infinity.
    """
    outputs, inputs = _check_stacks(b, a, rank)
    search = search or Search()
    path = path or cheapest(outputs, inputs, len(a), rank, search)
    if path == "stacked":
        image, sigma, right, total = _from_stacks(b, a, rank)
    elif path == "dense":
        image, sigma, right, total = _dense(b, a, rank)
    else:
        image, sigma, right, total = _range_finder(b, a, rank, key, search)
    present = int((sigma > sigma[0] * torch.finfo(sigma.dtype).eps * max(outputs, inputs)).sum()) if len(sigma) else 0
    rows = complete(right[:present], rank, key)
    columns = torch.zeros(outputs, rank, dtype=b.dtype)
    columns[:, :present] = image[:, :present]
    signs = _signs(rows, like)
    energy = float(sigma[:present].double().square().sum())
    return LowRankProduct(columns * signs, rows * signs[:, None], energy, max(total, energy))


def stack(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Stacks of pairs (B_i: (out, r_i), A_i: (r_i, in)), copied: (out, r), (r, in), where r is the sum of the r_i."""
    # In column-major order, which LAPACK uses.
    return torch.cat([b.T for b, _ in pairs]).T, torch.cat([a for _, a in pairs])


def cheapest(outputs: int, inputs: int, width: int, rank: int, search: Search | None = None) -> Path:
    """The path with the least work for a stack of `width`. An exact one is preferred if it is not much slower."""
    smaller = min(outputs, inputs)
    both = outputs + inputs
    work: dict[Path, float] = {
        "dense": outputs * inputs * width + _SVD * smaller * outputs * inputs,
        "randomized": _randomized_work(outputs, inputs, width, rank, search or Search()),
    }
    if width <= smaller:
        work["stacked"] = _FACTORIZATION * both * width * (width + rank) + _SVD * width**3
    exact = min((path for path in work if path != "randomized"), key=work.__getitem__)
    return exact if work[exact] <= _EXACT_PREFERENCE * work["randomized"] else "randomized"


def complete(a: Tensor, rank: int, key: Key) -> Tensor:
    """The orthonormal rows `a` (k, in), completed with random orthonormal rows: (rank, in). Raises ValueError."""
    present, inputs = a.shape
    if not present <= rank <= inputs:
        raise ValueError(f"{present} rows of {inputs} cannot be completed to {rank}")
    if present == rank:
        return a
    # In float64, so that new rows are orthogonal to the present ones to the last bit of float32.
    basis = a.double()
    rows = _random(key, rank * inputs).reshape(rank, inputs)[present:]
    for _ in range(2):
        rows = rows - (rows @ basis.T) @ basis
        rows = torch.linalg.qr(rows.T).Q.T
    return torch.cat([a, rows.to(a.dtype)])


def squared_norm(b: Tensor, a: Tensor) -> float:
    """Squared Frobenius norm of `b @ a`, from the two Gram matrices."""
    return float(((b.T @ b).double() * (a @ a.T).double()).sum().clamp(min=0))


# Images of the leading directions (out, k), singular values (k), directions (k, in), squared norm of W.
Decomposition = tuple[Tensor, Tensor, Tensor, float]


def _check_stacks(b: Tensor, a: Tensor, rank: int) -> tuple[int, int]:
    if b.dim() != 2 or a.dim() != 2 or b.shape[1] != a.shape[0]:
        raise ValueError(f"factors of shapes {list(b.shape)} and {list(a.shape)} have no product")
    outputs, inputs = b.shape[0], a.shape[1]
    if not 1 <= rank <= min(outputs, inputs):
        raise ValueError(f"rank {rank} is not in 1 ... {min(outputs, inputs)}, as a {outputs} x {inputs} matrix has")
    # A sum is NaN or infinite if any element is, and several times cheaper than a test of each element.
    if not (b.sum().isfinite() and a.sum().isfinite()):
        raise ValueError("a factor holds NaN or infinity")
    return outputs, inputs


def _from_stacks(b: Tensor, a: Tensor, rank: int) -> Decomposition:
    """Householder QR of both stacks and an SVD of the core. Orthogonal factors are applied but never formed.

    The left factor's triangle is enough, because the images are computed from the right directions.
    """
    width = len(a)
    left, _ = torch.geqrf(b)
    right, scales = torch.geqrf(a.T)
    _, sigma, vh = torch.linalg.svd(left[:width].triu() @ right[:width].triu().T)
    rows = torch.ormqr(right, scales, _above(vh[:rank].T, a.shape[1])).T
    return b @ (a @ rows.T), sigma[:rank], rows, float(sigma.double().square().sum())


def _above(block: Tensor, rows: int) -> Tensor:
    full = torch.zeros(rows, block.shape[1], dtype=block.dtype)
    full[: len(block)] = block
    return full


def _dense(b: Tensor, a: Tensor, rank: int) -> Decomposition:
    u, sigma, vh = torch.linalg.svd(b @ a, full_matrices=False)
    return u[:, :rank] * sigma[:rank], sigma[:rank], vh[:rank], float(sigma.double().square().sum())


def _range_finder(b: Tensor, a: Tensor, rank: int, key: Key, search: Search) -> Decomposition:
    outputs, inputs = len(b), a.shape[1]
    width = min(rank + search.oversampling, outputs, inputs)
    w = b @ a if _forming_pays(outputs, inputs, len(a), width, search) else None
    total = squared_norm(b, a) if w is None else _squared_norm_of(w)

    def times(x: Tensor) -> Tensor:
        return b @ (a @ x) if w is None else w @ x

    def transposed_times(x: Tensor) -> Tensor:
        return a.T @ (b.T @ x) if w is None else w.T @ x

    probe = _random(key, width * inputs).reshape(inputs, width).to(b.dtype)
    basis = torch.linalg.qr(times(probe)).Q
    for _ in range(search.power_iterations):
        basis = torch.linalg.qr(times(torch.linalg.qr(transposed_times(basis)).Q)).Q
    image = torch.linalg.qr(transposed_times(basis))
    u, sigma, vh = torch.linalg.svd(image.R.T)
    return basis @ (u[:, :rank] * sigma[:rank]), sigma[:rank], vh[:rank] @ image.Q.T, total


def _randomized_work(outputs: int, inputs: int, width: int, rank: int, search: Search) -> float:
    sample = min(rank + search.oversampling, outputs, inputs)
    products = 2 + 2 * search.power_iterations
    if _forming_pays(outputs, inputs, width, sample, search):
        work = outputs * inputs * (width + products * sample)
    else:
        work = (outputs + inputs) * width * (width + products * sample)
    return work + _FACTORIZATION * (outputs + inputs) * sample**2 * (1 + search.power_iterations) + _SVD * sample**3


def _forming_pays(outputs: int, inputs: int, width: int, sample: int, search: Search) -> bool:
    products = 2 + 2 * search.power_iterations
    forming = outputs * inputs * (width + products * sample)
    return forming < (outputs + inputs) * width * (width + products * sample)


def _squared_norm_of(matrix: Tensor) -> float:
    """Squared Frobenius norm."""
    return float(torch.linalg.vector_norm(matrix, dim=1).double().square().sum())


def _random(key: Key, count: int) -> Tensor:
    """Uniform in [-1, 1), float64."""
    return words(key, 0, count).double() / 2**31 - 1


def _signs(rows: Tensor, like: Tensor | None) -> Tensor:
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))[:, 0]
    if like is not None:
        common = min(len(like), len(rows))
        along = (rows[:common] * like[:common].to(rows.dtype)).sum(dim=1)
        largest[:common] = torch.where(along == 0, largest[:common], along)
    return torch.where(largest < 0, -1.0, 1.0).to(rows.dtype)
