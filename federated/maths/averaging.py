"""The exact weighted sum: in the given order, in float64, rounded once.

The work is cut at fixed places into chunks that stay in a core's cache, so neither memory nor a bit of the
result depends on how many tensors are summed at once or on how many threads run.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

import torch
from torch import Tensor

# Torch runs an operation of at most this many elements on the calling thread alone; two float64 buffers of
# this size fit into the second-level cache.
_CHUNK_ELEMENTS = 32_768

Value = TypeVar("Value")


def weighted_sum(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    divisor: float = 1.0,
    base: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`base + (weights[0] * tensors[0] + weights[1] * tensors[1] + ...) / divisor`, of one shape, as `dtype`.

    Inputs may be of any floating dtype and memory-mapped; each element is summed in the order given with a
    float64 accumulator and rounded once. Needs 512 KiB beside the result.
    Raises ValueError if there is nothing to sum, or if shapes or numbers of tensors and weights differ.
    """
    if not tensors or len(tensors) != len(weights):
        raise ValueError(f"{len(tensors)} tensors and {len(weights)} weights cannot be summed")
    shape = tensors[0].shape
    if any(tensor.shape != shape for tensor in (*tensors, *([] if base is None else [base]))):
        raise ValueError(f"tensors of other shapes than {list(shape)} cannot be summed")
    flat = [tensor.reshape(-1) for tensor in tensors]
    flat_base = None if base is None else base.reshape(-1)
    result = torch.empty(shape.numel(), dtype=dtype)
    buffers = torch.empty(2, min(_CHUNK_ELEMENTS, shape.numel()), dtype=torch.float64)
    for first in range(0, shape.numel(), _CHUNK_ELEMENTS):
        part = slice(first, first + _CHUNK_ELEMENTS)
        accumulator, widened = buffers[:, : result[part].numel()]
        accumulator.zero_()
        for tensor, weight in zip(flat, weights, strict=True):
            accumulator.add_(widened.copy_(tensor[part]), alpha=weight)
        accumulator.div_(divisor)
        if flat_base is not None:
            accumulator.add_(widened.copy_(flat_base[part]))
        result[part] = accumulator
    return result.reshape(shape)


class Recent(Generic[Value]):
    """The last `keep` results of a pure function of a name, each made once, from any number of threads."""

    def __init__(self, make: Callable[[str], Value], keep: int = 4) -> None:
        self._make = make
        self._keep = keep
        self._lock = threading.Lock()
        self._made: OrderedDict[str, Future[Value]] = OrderedDict()

    def __call__(self, name: str) -> Value:
        """The result for `name`; a second thread that asks meanwhile waits for the first."""
        with self._lock:
            future = self._made.get(name)
            first = future is None
            if future is None:
                future = self._made[name] = Future()
                while len(self._made) > self._keep:
                    self._made.popitem(last=False)
        if first:
            try:
                future.set_result(self._make(name))
            except BaseException as error:
                future.set_exception(error)
        return future.result()
