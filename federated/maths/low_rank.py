"""The best low-rank factors of a sum of products, without ever forming the sum where that is not cheaper.

W = sum_i B_i A_i is the product of the stacks b = [B_1 B_2 ...] and a = [A_1; A_2; ...]. Where the stack is narrow,
QR of both stacks leaves an SVD of a core as wide as the stack: exact. Where it is about as wide as the matrix, a
randomized range finder (Halko, Martinsson, Tropp, "Finding Structure with Randomness", SIAM Review 2011) finds the
leading part. Factors are always (b: (out, k) with the singular values in it, a: (k, in) with orthonormal rows).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from federated.maths.generator import Key, words

Path = Literal["stacked", "dense", "randomized"]

# What an operation takes in the time of one multiplication inside a matrix product; measured, float32, two cores.
_FACTORISATION = 3.0
_SVD = 15.0
# How many times the randomized path's work the exact answer is worth.
_EXACT_IS_WORTH = 3.0


@dataclass(frozen=True, slots=True)
class Truncated:
    """The leading part of a matrix W. b: (out, k), a: (k, in); `captured` and `total` are squared norms.

    Row i of `a` is a direction of the inputs, column i of `b` its image times its singular value. Where W lacks rank
    the columns are zero and the rows random.
    """

    b: Tensor
    a: Tensor
    captured: float
    total: float


@dataclass(frozen=True, slots=True)
class Search:
    """How the randomized path looks for the leading part."""

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
) -> Truncated:
    """The best approximation of rank `rank` of `b @ a` (FlexLoRA's redistribution).

    b: (out, r), a: (r, in), float32 or float64, any r. All singular values go into the result's b, and its rows of a
    are orthonormal, also where `b @ a` has a lower rank: those are drawn by `key`, so that nothing starts dead.
    Signs follow the rows of `like` (an earlier a), or else each row's largest entry is positive.
    `path` None: whichever is cheapest, exactness counting for something.
    Raises ValueError if `rank` is not in 1 ... min(out, in), for stacks that do not fit, and for NaN or infinity.
    """
    outputs, inputs = _checked(b, a, rank)
    search = search or Search()
    chosen = path or cheapest(outputs, inputs, len(a), rank, search)
    if chosen == "stacked":
        image, sigma, right, total = _stacked(b, a, rank)
    elif chosen == "dense":
        image, sigma, right, total = _dense(b, a, rank)
    else:
        image, sigma, right, total = _randomized(b, a, rank, key, search)
    present = int((sigma > sigma[0] * torch.finfo(sigma.dtype).eps * max(outputs, inputs)).sum()) if len(sigma) else 0
    rows = complete(right[:present], rank, key)
    columns = torch.zeros(outputs, rank, dtype=b.dtype)
    columns[:, :present] = image[:, :present]
    signs = _signs(rows, like)
    captured = float(sigma[:present].double().square().sum())
    return Truncated(columns * signs, rows * signs[:, None], captured, max(total, captured))


def stack(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The stacks of some pairs (B_i: (out, r_i), A_i: (r_i, in)), copied: (out, r), (r, in) with r the sum."""
    # By columns, as LAPACK wants both.
    return torch.cat([b.T for b, _ in pairs]).T, torch.cat([a for _, a in pairs])


def cheapest(outputs: int, inputs: int, width: int, rank: int, search: Search | None = None) -> Path:
    """Which path takes the least work for a stack of `width`; an exact one if it is not far from the cheapest."""
    smaller = min(outputs, inputs)
    both = outputs + inputs
    work: dict[Path, float] = {
        "dense": outputs * inputs * width + _SVD * smaller * outputs * inputs,
        "randomized": _randomized_work(outputs, inputs, width, rank, search or Search()),
    }
    if width <= smaller:
        work["stacked"] = _FACTORISATION * both * width * (width + rank) + _SVD * width**3
    exact = min((path for path in work if path != "randomized"), key=work.__getitem__)
    return exact if work[exact] <= _EXACT_IS_WORTH * work["randomized"] else "randomized"


def complete(a: Tensor, rank: int, key: Key) -> Tensor:
    """Rows of `a` (k, in), orthonormal, and random ones orthonormal to them: (rank, in). Raises ValueError."""
    present, inputs = a.shape
    if not present <= rank <= inputs:
        raise ValueError(f"{present} rows of {inputs} cannot be completed to {rank}")
    if present == rank:
        return a
    # In float64: what a drawn row shares with those there is taken out to the last bit of float32.
    there = a.double()
    drawn = _random(key, rank * inputs).reshape(rank, inputs)[present:]
    for _ in range(2):
        drawn = drawn - (drawn @ there.T) @ there
        drawn = torch.linalg.qr(drawn.T).Q.T
    return torch.cat([a, drawn.to(a.dtype)])


def squared_norm(b: Tensor, a: Tensor) -> float:
    """Squared Frobenius norm of `b @ a`, from the two Gram matrices."""
    return float(((b.T @ b).double() * (a @ a.T).double()).sum().clamp(min=0))


# Images of the leading directions (out, k), singular values (k), directions (k, in), squared norm of all of W.
Decomposition = tuple[Tensor, Tensor, Tensor, float]


def _checked(b: Tensor, a: Tensor, rank: int) -> tuple[int, int]:
    if b.dim() != 2 or a.dim() != 2 or b.shape[1] != a.shape[0]:
        raise ValueError(f"factors of shapes {list(b.shape)} and {list(a.shape)} have no product")
    outputs, inputs = b.shape[0], a.shape[1]
    if not 1 <= rank <= min(outputs, inputs):
        raise ValueError(f"rank {rank} is not in 1 ... {min(outputs, inputs)}, as a {outputs} x {inputs} matrix has")
    # A sum is NaN or infinite if any element is, and several times cheaper than asking each.
    if not (b.sum().isfinite() and a.sum().isfinite()):
        raise ValueError("a factor holds NaN or infinity")
    return outputs, inputs


def _stacked(b: Tensor, a: Tensor, rank: int) -> Decomposition:
    """Householder QR of both stacks and an SVD of the core; orthogonal factors are applied, never formed.

    Of the left one its triangle is enough: what W makes of the right directions is their image already.
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


def _randomized(b: Tensor, a: Tensor, rank: int, key: Key, search: Search) -> Decomposition:
    outputs, inputs = len(b), a.shape[1]
    sought = min(rank + search.oversampling, outputs, inputs)
    formed = b @ a if _forming_pays(outputs, inputs, len(a), sought, search) else None
    total = squared_norm(b, a) if formed is None else _squared(formed)

    def times(x: Tensor) -> Tensor:
        return b @ (a @ x) if formed is None else formed @ x

    def transposed_times(x: Tensor) -> Tensor:
        return a.T @ (b.T @ x) if formed is None else formed.T @ x

    drawn = _random(key, sought * inputs).reshape(inputs, sought).to(b.dtype)
    basis = torch.linalg.qr(times(drawn)).Q
    for _ in range(search.power_iterations):
        basis = torch.linalg.qr(times(torch.linalg.qr(transposed_times(basis)).Q)).Q
    image = torch.linalg.qr(transposed_times(basis))
    u, sigma, vh = torch.linalg.svd(image.R.T)
    return basis @ (u[:, :rank] * sigma[:rank]), sigma[:rank], vh[:rank] @ image.Q.T, total


def _randomized_work(outputs: int, inputs: int, width: int, rank: int, search: Search) -> float:
    sought = min(rank + search.oversampling, outputs, inputs)
    products = 2 + 2 * search.power_iterations
    if _forming_pays(outputs, inputs, width, sought, search):
        walked = outputs * inputs * (width + products * sought)
    else:
        walked = (outputs + inputs) * width * (width + products * sought)
    return walked + _FACTORISATION * (outputs + inputs) * sought**2 * (1 + search.power_iterations) + _SVD * sought**3


def _forming_pays(outputs: int, inputs: int, width: int, sought: int, search: Search) -> bool:
    products = 2 + 2 * search.power_iterations
    formed = outputs * inputs * (width + products * sought)
    return formed < (outputs + inputs) * width * (width + products * sought)


def _squared(matrix: Tensor) -> float:
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
