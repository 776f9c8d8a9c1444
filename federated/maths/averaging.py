"""Exact weighted sum: in the order of the arguments, in float64, rounded once.

The work is cut at fixed positions into pieces that stay in the cache, so memory and bits of the result do not depend
on the number of concurrent sums or threads.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

import torch
from torch import Tensor

from federated.payloads.payload import LazyTensor

# Long enough that threads rarely contend for the interpreter's lock, short enough for the last-level cache.
_PIECE_ELEMENTS = 262_144

Value = TypeVar("Value")


def weighted_sum(
    tensors: Sequence[Tensor | LazyTensor],
    weights: Sequence[float],
    *,
    divisor: float = 1.0,
    base: Tensor | LazyTensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`base + (weights[0] * tensors[0] + weights[1] * tensors[1] + ...) / divisor`, of one shape, as `dtype`.

    Inputs may have any floating dtype. Lazy ones are read piece by piece, never as a whole. Each element is summed in
    the order of `tensors` with a float64 accumulator and rounded once. Needs 5 MiB besides the result.
    Raises ValueError for no tensors, different shapes, or different numbers of tensors and weights.
    """
    if not tensors or len(tensors) != len(weights):
        raise ValueError(f"{len(tensors)} tensors and {len(weights)} weights cannot be summed")
    shape = tuple(tensors[0].shape)
    inputs = [*tensors, *([] if base is None else [base])]
    if any(tuple(tensor.shape) != shape for tensor in inputs):
        raise ValueError(f"tensors of other shapes than {list(shape)} cannot be summed")
    result = torch.empty(math.prod(shape), dtype=dtype)
    flat = [tensor.reshape(-1) if isinstance(tensor, Tensor) else tensor for tensor in inputs]
    buffers = _Buffers({tensor.dtype for tensor in inputs}, min(_PIECE_ELEMENTS, result.numel()))
    for first in range(0, result.numel(), _PIECE_ELEMENTS):
        part = result[first : first + _PIECE_ELEMENTS]
        piece = _Piece(buffers, first, part.numel())
        for tensor, weight in zip(flat, weights, strict=False):
            piece.add(tensor, weight)
        piece.divide(divisor)
        if base is not None:
            piece.add(flat[-1], 1.0)
        piece.round_into(part)
    return result.reshape(shape)


class _Buffers:
    """Buffers that all pieces of one sum share."""

    def __init__(self, dtypes: set[torch.dtype], elements: int) -> None:
        self.accumulator = torch.empty(elements, dtype=torch.float64)
        self.float64 = torch.empty(elements, dtype=torch.float64)
        self.read = {dtype: torch.empty(elements, dtype=dtype) for dtype in dtypes}


class _Piece:
    """The sum of the elements from `first` on. Its views are created once and used for every input."""

    def __init__(self, buffers: _Buffers, first: int, count: int) -> None:
        self._first = first
        self._count = count
        self._sum = buffers.accumulator[:count].zero_()
        self._float64 = buffers.float64[:count]
        self._read = {dtype: buffer[:count] for dtype, buffer in buffers.read.items()}
        self._bytes = {dtype: buffer.view(torch.uint8).numpy().data for dtype, buffer in self._read.items()}

    def add(self, tensor: Tensor | LazyTensor, weight: float) -> None:
        """Add this piece of a flat tensor."""
        if isinstance(tensor, Tensor):
            part = tensor[self._first : self._first + self._count]
        else:
            tensor.fill(self._first, self._bytes[tensor.dtype])
            part = self._read[tensor.dtype]
        self._sum.add_(self._float64.copy_(part), alpha=weight)

    def divide(self, divisor: float) -> None:
        """Divide the sum so far."""
        self._sum.div_(divisor)

    def round_into(self, flat: Tensor) -> None:
        """Store the sum in `flat`, in its dtype."""
        flat.copy_(self._sum)


class RecentResults(Generic[Value]):
    """Thread-safe cache of the last `keep` results of a pure function of a name. Each is computed once."""

    def __init__(self, make: Callable[[str], Value], keep: int = 4) -> None:
        self._make = make
        self._keep = keep
        self._lock = threading.Lock()
        self._results: OrderedDict[str, Future[Value]] = OrderedDict()

    def __call__(self, name: str) -> Value:
        """The result for `name`. A second thread waits while the first one computes it."""
        with self._lock:
            future = self._results.get(name)
            first = future is None
            if future is None:
                future = self._results[name] = Future()
                while len(self._results) > self._keep:
                    self._results.popitem(last=False)
        if first:
            try:
                future.set_result(self._make(name))
            except BaseException as error:
                future.set_exception(error)
        return future.result()
