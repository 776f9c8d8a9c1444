"""Payload = named tensors + JSON facts, stored as safetensors; never pickle.

The bytes are a function of the content alone: tensors ordered as the safetensors library orders them (widest
dtype first, then by name), all facts as canonical JSON under one metadata key. Reading maps the file and opens
a tensor when it is asked for; writing streams tensor by tensor.
"""

import hashlib
import io
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from federated.header import DTYPE_BYTES, FACTS_KEY, Header, TensorEntry, parse_header, read_header

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "I64": torch.int64, "F32": torch.float32, "I32": torch.int32,
    "F16": torch.float16, "BF16": torch.bfloat16, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# safetensors sorts by its own dtype order, reversed.
_FILE_ORDER = {n: i for i, n in enumerate(("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL"))}


class Payload(Mapping[str, Tensor]):
    """Tensors by name, in sorted order of names, and `facts` (JSON values).

    A tensor given as a `LazyTensor` is made when it is asked for, and not kept: a payload of lazy tensors can be
    written with one tensor in memory at a time.
    """

    def __init__(self, tensors: Mapping[str, "Tensor | LazyTensor"], facts: Mapping[str, Any] | None = None) -> None:
        self._tensors = {name: tensors[name] for name in sorted(tensors)}
        self.facts: Mapping[str, Any] = dict(facts or {})

    def __getitem__(self, name: str) -> Tensor:
        value = self._tensors[name]
        return value if isinstance(value, Tensor) else value.read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without opening it."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> str:
        """safetensors dtype of a tensor, such as F32, without opening it. Raises KeyError for one not stored."""
        return _NAMES[self._tensors[name].dtype]

    def with_facts(self, **facts: Any) -> "Payload":
        """The same tensors with these facts added or replaced."""
        return Payload(self._tensors, {**self.facts, **facts})

    @classmethod
    def open(cls, path: Path) -> "Payload":
        """The payload stored at `path`, memory-mapped. Raises HeaderError for a file that is not one."""
        header = read_header(path)
        mapped = torch.from_file(str(path), shared=False, size=header.file_bytes, dtype=torch.uint8)
        return cls._of(header, mapped)

    @classmethod
    def decode(cls, data: bytes) -> "Payload":
        """The payload in `data`. Raises HeaderError."""
        header = parse_header(io.BytesIO(data), len(data))
        return cls._of(header, torch.frombuffer(bytearray(data), dtype=torch.uint8))

    @classmethod
    def _of(cls, header: Header, data: Tensor) -> "Payload":
        lazy = {name: _stored(data, header.data_start, entry) for name, entry in header.tensors.items()}
        return cls(lazy, header.facts)

    def encode(self) -> bytes:
        """The safetensors bytes: a function of tensors and facts alone."""
        buffer = io.BytesIO()
        self.write_to(buffer)
        return buffer.getvalue()

    def write(self, path: Path) -> str:
        """Store at `path` and return "sha256:" + hex digest of the bytes."""
        with path.open("wb") as file:
            return self.write_to(file)

    def write_to(self, file: BinaryIO) -> str:
        """Stream the bytes into `file`, one tensor in memory at a time; returns "sha256:" + hex digest."""
        digest = hashlib.sha256()
        for piece in self._pieces():
            digest.update(piece)
            file.write(piece)
        return "sha256:" + digest.hexdigest()

    def _pieces(self) -> Iterator[bytes | memoryview]:
        order = sorted(self._tensors, key=lambda name: (_FILE_ORDER[self.dtype(name)], name))
        yield self._header(order)
        for name in order:
            tensor = self[name].detach().to("cpu").contiguous()
            if tensor.numel():
                yield tensor.reshape(-1).view(torch.uint8).numpy().data

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
    """A tensor of known dtype and shape that is made by `read` when it is asked for."""

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...], read: Callable[[], Tensor]) -> None:
        self.dtype = dtype
        self.shape = shape
        self.read = read


def canonical_json(value: object) -> str:
    """JSON text that is a function of the value alone: sorted keys, no spaces, no NaN. Raises ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _stored(data: Tensor, data_start: int, entry: TensorEntry) -> LazyTensor:
    dtype = _DTYPES.get(entry.dtype)
    if dtype is None:
        raise TypeError(f"dtype {entry.dtype} is not used in payloads")

    def read() -> Tensor:
        raw = data[data_start + entry.start : data_start + entry.end]
        aligned = raw if (raw.data_ptr() % dtype.itemsize) == 0 else raw.clone()
        return aligned.view(dtype).reshape(entry.shape)

    return LazyTensor(dtype, entry.shape, read)
