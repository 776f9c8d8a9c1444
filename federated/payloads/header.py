"""Parser and checks for the header of a safetensors file, with the standard library only.

Layout (safetensors format): 8 bytes of little-endian header length, the JSON header, then the data. The web process
uses it to check an upload without torch. A `HeaderError` names the tensor and the reason.
"""

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from federated.payloads.schema import first_difference

MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_TENSORS = 65_536
MAX_NAME_CHARACTERS = 512
MAX_DIMENSIONS = 32
MAX_JSON_VALUES = 1024 * 1024
"""Limit of the header, and of its facts: sixteen for each tensor. A value takes 100 bytes or more in Python."""
DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
FACTS_KEY = "facts"
_CACHED_HEADER_BYTES = 1024 * 1024
# Linear in the text: possessive quantifiers, so no character is matched twice.
_STRING_LITERAL = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


class HeaderError(ValueError):
    """An invalid header. `tensor` is the name of the invalid entry, or None for the file itself."""

    def __init__(self, reason: str, tensor: str | None = None) -> None:
        super().__init__(f"tensor {tensor!r}: {reason}" if tensor is not None else reason)
        self.tensor = None if tensor is None else tensor.encode(errors="replace").decode()
        self.reason = reason


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Header entry of one tensor. `start` and `end` are byte offsets from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header: entries by name, the payload's facts, and the byte position of the data in the file."""

    tensors: Mapping[str, TensorEntry]
    facts: Mapping[str, Any]
    data_start: int
    file_bytes: int


def read_header(path: Path) -> Header:
    """Read the header of the file at `path` and check it against the file's size. Raises HeaderError."""
    with path.open("rb") as file:
        return parse_header(file, path.stat().st_size)


def parse_header(file: BinaryIO, file_bytes: int) -> Header:
    """Parse the header of a file of `file_bytes` bytes, open at its start. Raises HeaderError.

    Reads the header only. Entries must be contiguous, in bounds, and cover all data.
    """
    prefix = file.read(8)
    if len(prefix) < 8:
        raise HeaderError(f"file of {file_bytes} bytes is too short for a safetensors header")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES:
        raise HeaderError(f"header of {length} bytes is larger than {MAX_HEADER_BYTES}")
    raw = file.read(length)
    if len(raw) < length:
        raise HeaderError(f"header says {length} bytes, the file ends after {len(raw)}")
    tensors, facts_text = _table(raw) if length <= _CACHED_HEADER_BYTES else _table.__wrapped__(raw)
    _check_layout(tensors, file_bytes - 8 - length)
    facts = _parse_json(facts_text.encode(errors="surrogatepass"), "facts are")
    return Header(tensors, facts, 8 + length, file_bytes)


def check_expected(header: Header, schema: Mapping[str, Mapping[str, Any]]) -> None:
    """Check a header against an update schema, the `expects` of an instruction. Raises HeaderError."""
    tensors = ((name, entry.dtype, entry.shape) for name, entry in header.tensors.items())
    difference = first_difference(tensors, schema)
    if difference is not None:
        raise HeaderError(difference.reason, difference.tensor)


# The updates of a round have equal headers, so they are parsed once and share one table.
@lru_cache(maxsize=8)
def _table(raw: bytes) -> tuple[Mapping[str, TensorEntry], str]:
    document = _parse_json(raw, "header is")
    facts_text = _facts_text(document.pop("__metadata__", {}))
    if len(document) > MAX_TENSORS:
        raise HeaderError(f"{len(document)} tensors are more than {MAX_TENSORS}")
    tensors = {name: _entry(name, document[name]) for name in sorted(document)}
    return MappingProxyType(tensors), facts_text


def _parse_json(raw: bytes, what: str) -> dict[str, Any]:
    """The object in a JSON text. Values are counted before parsing, because they take more memory than their text."""
    outside = _STRING_LITERAL.sub(b"", raw)
    if sum(map(outside.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise HeaderError(f"{what} too large: more than {MAX_JSON_VALUES} JSON values")
    try:
        document = json.loads(raw.decode(), object_pairs_hook=_unique_names)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"{what} not JSON: {error}") from None
    if not isinstance(document, dict):
        raise HeaderError(f"{what} not a JSON object")
    return document


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("an object has the same name twice")
    return fields


def _facts_text(metadata: object) -> str:
    if not isinstance(metadata, dict):
        raise HeaderError("__metadata__ is not an object")
    text = metadata.get(FACTS_KEY, "{}")
    if not isinstance(text, str):
        raise HeaderError("facts are not text")
    return text


def _entry(name: str, entry: object) -> TensorEntry:
    if len(name) > MAX_NAME_CHARACTERS:
        raise HeaderError(f"name has {len(name)} characters, at most {MAX_NAME_CHARACTERS}", name[:64] + "…")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise HeaderError("entry must have dtype, shape and data_offsets", name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPE_BYTES if isinstance(dtype, str) else True:
        raise HeaderError(f"unknown dtype {str(dtype)[:32]!r}", name)
    if isinstance(shape, list) and len(shape) > MAX_DIMENSIONS:
        raise HeaderError(f"has {len(shape)} dimensions, at most {MAX_DIMENSIONS}", name)
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise HeaderError("shape and data_offsets must be lists of whole numbers", name)
    start, end = offsets
    if math.prod(size or 1 for size in shape) >= 2**60:  # strides are computed past a dimension of 0, too
        raise HeaderError(f"shape {shape} has too many elements", name)
    if end - start != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise HeaderError(f"{end - start} bytes do not hold shape {shape} of {dtype}", name)
    return TensorEntry(dtype, tuple(shape), start, end)


def _whole_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_layout(tensors: Mapping[str, TensorEntry], data_bytes: int) -> None:
    position = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            raise HeaderError(f"starts at byte {entry.start}, expected {position}", name)
        position = entry.end
    if position != data_bytes:
        raise HeaderError(f"tensors take {position} bytes, the file holds {data_bytes}")
