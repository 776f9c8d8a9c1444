"""Payload: named tensors and JSON facts, stored as safetensors and never as pickle.

The bytes are a function of the content alone. Tensors are in the order of the safetensors library (widest dtype
first, then by name), and all facts are canonical JSON under one metadata key. Reading maps the file and opens tensors
on demand. Writing streams tensor by tensor.
"""

import hashlib
import io
import json
import math
import os
import struct
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from federated.payloads.header import DTYPE_BYTES, FACTS_KEY, Header, HeaderError, parse_header, read_header
from federated.payloads.parallel import one_core_each

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "I64": torch.int64, "F32": torch.float32, "I32": torch.int32,
    "F16": torch.float16, "BF16": torch.bfloat16, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# safetensors sorts by its own dtype order, reversed.
_FILE_ORDER = {n: i for i, n in enumerate(("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL"))}

# Far below the usual limit of 1,000 open files per process.
_DESCRIPTORS = threading.BoundedSemaphore(256)


def stored_name(dtype: torch.dtype) -> str:
    """safetensors' name of a dtype, such as F32. Raises KeyError for an unsupported one."""
    return _NAMES[dtype]


class Payload(Mapping[str, Tensor]):
    """Tensors by name, in sorted order of names, and `facts` (JSON values).

    A `LazyTensor` is computed on each access and not cached, so a payload of lazy tensors can be written with one
    tensor in memory at a time.
    """

    def __init__(self, tensors: Mapping[str, "Tensor | LazyTensor"], facts: Mapping[str, Any] | None = None) -> None:
        self._tensors: Mapping[str, Tensor | LazyTensor] = tensors
        if not isinstance(tensors, _StoredTensors):
            self._tensors = {name: tensors[name] for name in sorted(tensors)}
        self.facts: Mapping[str, Any] = dict(facts or {})

    def __getitem__(self, name: str) -> Tensor:
        value = self._tensors[name]
        if isinstance(value, Tensor):
            return value
        tensor = value.read()
        if tensor.dtype != value.dtype or tuple(tensor.shape) != value.shape:
            actual, declaration = f"{tensor.dtype} {list(tensor.shape)}", f"{value.dtype} {list(value.shape)}"
            raise ValueError(f"tensor {name!r} was read as {actual}, declared as {declaration}")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without opening it."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> str:
        """safetensors dtype of a tensor, such as F32, without opening it. Raises KeyError for an unknown name."""
        return stored_name(self._tensors[name].dtype)

    def lazy(self, name: str) -> "LazyTensor":
        """A reference to a tensor, to put it into another payload without opening it. Raises KeyError."""
        value = self._tensors[name]
        return value if isinstance(value, LazyTensor) else LazyTensor(value.dtype, tuple(value.shape), lambda: value)

    def with_facts(self, **facts: Any) -> "Payload":
        """The same tensors with these facts added or replaced."""
        return Payload(self._tensors, {**self.facts, **facts})

    @classmethod
    def open(cls, path: Path) -> "Payload":
        """The payload in the file at `path`, memory-mapped. Raises HeaderError for an invalid file."""
        header = read_header(path)
        mapping = torch.from_file(str(path), shared=False, size=header.file_bytes, dtype=torch.uint8)
        return cls(_StoredTensors(header, mapping, _descriptor_of(mapping, path)), header.facts)

    @classmethod
    def decode(cls, data: bytes) -> "Payload":
        """The payload in `data`. Raises HeaderError."""
        header = parse_header(io.BytesIO(data), len(data))
        return cls(_StoredTensors(header, torch.frombuffer(bytearray(data), dtype=torch.uint8)), header.facts)

    def encode(self) -> bytes:
        """The safetensors bytes: a function of tensors and facts alone."""
        buffer = io.BytesIO()
        self.write_to(buffer)
        return buffer.getvalue()

    def write(self, path: Path, threads: int = 1) -> str:
        """Store at `path` and return "sha256:" + hex digest of the bytes."""
        with path.open("wb") as file:
            return self.write_to(file, threads)

    def write_to(self, file: BinaryIO, threads: int = 1) -> str:
        """Stream the bytes into `file` and return "sha256:" + hex digest.

        `threads` threads compute lazy tensors ahead of the writing, with at most `2 * threads + 1` in memory.
        """
        digest = hashlib.sha256()
        for piece in self._pieces(threads):
            digest.update(piece)
            file.write(piece)
        return "sha256:" + digest.hexdigest()

    def _pieces(self, threads: int) -> Iterator[bytes | memoryview]:
        order = sorted(self._tensors, key=lambda name: (_FILE_ORDER[self.dtype(name)], name))
        yield self._header(order)
        for value in self._ahead(order, threads):
            tensor = value.detach().to("cpu").contiguous()
            if tensor.numel():
                yield tensor.reshape(-1).view(torch.uint8).numpy().data

    def _ahead(self, order: list[str], threads: int) -> Iterator[Tensor]:
        if threads == 1:
            yield from map(self.__getitem__, order)
            return
        with one_core_each(threads) as pool:
            futures: deque[Future[Tensor]] = deque()
            try:
                for name in order:
                    futures.append(pool.submit(self.__getitem__, name))
                    if len(futures) > 2 * threads:
                        yield futures.popleft().result()
                while futures:
                    yield futures.popleft().result()
            finally:
                for future in futures:
                    future.cancel()

    def _header(self, order: list[str]) -> bytes:
        document: dict[str, Any] = {}
        if self.facts:
            document["__metadata__"] = {FACTS_KEY: canonical_json(self.facts)}
        position = 0
        for name in order:
            shape = self.shape(name)
            end = position + torch.Size(shape).numel() * DTYPE_BYTES[self.dtype(name)]
            document[name] = {
                "dtype": self.dtype(name),
                "shape": list(shape),
                "data_offsets": [position, end],
            }
            position = end
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text


class LazyTensor:
    """A tensor of known dtype and shape that `read` computes on demand."""

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...], read: Callable[[], Tensor]) -> None:
        self.dtype = dtype
        self.shape = shape
        self.read = read

    def fill(self, first: int, out: memoryview) -> None:
        """Copy the bytes of the elements from `first` on into `out`, until it is full."""
        flat = self.read().reshape(-1).view(torch.uint8)
        start = first * self.dtype.itemsize
        out[:] = flat[start : start + len(out)].numpy().data


def canonical_json(value: object) -> str:
    """JSON text that is a function of the value alone: sorted keys, no spaces, no NaN. Raises ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class _StoredTensors(Mapping[str, LazyTensor]):
    """The tensors of a file by sorted name. Files with equal headers share one parsed table."""

    def __init__(self, header: Header, data: Tensor, descriptor: int | None = None) -> None:
        for name, entry in header.tensors.items():
            if entry.dtype not in _DTYPES:
                raise HeaderError(f"dtype {entry.dtype} is not used in payloads", name)
        self._header = header
        self._data = data
        self._descriptor = descriptor

    def __getitem__(self, name: str) -> LazyTensor:
        entry = self._header.tensors[name]
        return _StoredTensor(_DTYPES[entry.dtype], entry.shape, self, self._header.data_start + entry.start)

    def __iter__(self) -> Iterator[str]:
        return iter(self._header.tensors)

    def __len__(self) -> int:
        return len(self._header.tensors)

    def view(self, position: int, count: int) -> Tensor:
        """Bytes of the mapped file: (count,) uint8."""
        return self._data[position : position + count]

    def read_into(self, position: int, out: memoryview) -> None:
        """Copy bytes of the file into `out`. For a buffer in the cache this costs half as much as mapped pages."""
        if self._descriptor is None or os.preadv(self._descriptor, [out], position) != len(out):
            out[:] = self.view(position, len(out)).numpy().data


class _StoredTensor(LazyTensor):
    """One tensor of a file."""

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...], file: _StoredTensors, position: int) -> None:
        super().__init__(dtype, shape, self._view)
        self._file = file
        self._position = position

    def fill(self, first: int, out: memoryview) -> None:
        self._file.read_into(self._position + first * self.dtype.itemsize, out)

    def _view(self) -> Tensor:
        if math.prod(self.shape) == 0:
            return torch.empty(self.shape, dtype=self.dtype)  # an empty slice has no aligned address
        raw = self._file.view(self._position, math.prod(self.shape) * self.dtype.itemsize)
        is_aligned = raw.data_ptr() % self.dtype.itemsize == 0
        return (raw if is_aligned else raw.clone()).view(self.dtype).reshape(self.shape)


def _descriptor_of(mapping: Tensor, path: Path) -> int | None:
    """A descriptor of the file that is closed with its mapping. None if too many are open."""
    if not _DESCRIPTORS.acquire(blocking=False):
        return None
    descriptor = os.open(path, os.O_RDONLY)
    weakref.finalize(mapping, _close, descriptor)
    return descriptor


def _close(descriptor: int) -> None:
    os.close(descriptor)
    _DESCRIPTORS.release()
