"""Bytes that are almost a payload: a file of safetensors whose header, facts or values have something wrong."""

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st

from federated.payloads.header import DTYPE_BYTES, FACTS_KEY
from tests.fuzz.values import JSON_TEXTS, TEXTS, changed

FLOATS = (float("nan"), float("inf"), float("-inf"), 3e38, -1e30, 1e7, 1e6, -1e6, 1e-45, -0.0)
LENGTHS = (0, 1, 7, 2**20, 2**24, 2**31, 2**63 - 1, 2**64 - 1)
Header = dict[str, Any]
Way = Callable[[st.DrawFn, bytes], bytes]


def almost(content: bytes) -> st.SearchStrategy[bytes]:
    """The file with something wrong, most often one thing alone."""
    return _damaged(content)


@st.composite
def wrong_values(draw: st.DrawFn, content: bytes) -> bytes:
    """The file with numbers that nobody can add up: it looks well until its tensors are read."""
    return _values(draw, content)


@st.composite
def _damaged(draw: st.DrawFn, content: bytes) -> bytes:
    ways = WAYS if _names(decoded(content)[0]) else [way for way in WAYS if way not in (_values, _entry)]
    return draw(st.sampled_from(ways))(draw, content)


def encoded(header: Header | str, data: bytes) -> bytes:
    """A file of safetensors."""
    text = header if isinstance(header, str) else json.dumps(header)
    raw = text.encode(errors="surrogatepass")
    return struct.pack("<Q", len(raw)) + raw + data


def decoded(content: bytes) -> tuple[Header, bytes]:
    """Header and data of a file of safetensors."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _values(draw: st.DrawFn, content: bytes) -> bytes:
    """A number that nobody can add up, once or everywhere."""
    header, data = decoded(content)
    entry = header[draw(st.sampled_from(_names(header)))]
    start, end = entry["data_offsets"]
    if entry["dtype"] != "F32" or start == end:
        return _flips(draw, content)
    value = struct.pack("<f", draw(st.sampled_from(FLOATS) | st.floats(width=32)))
    at = start + 4 * draw(st.integers(0, (end - start) // 4 - 1))
    many = draw(st.booleans())
    wrong = data[:start] + value * ((end - start) // 4) if many else data[:at] + value
    return encoded(header, wrong + data[len(wrong) :])


def _header(draw: st.DrawFn, content: bytes) -> bytes:
    """Anything at one place of the header."""
    header, data = decoded(content)
    return encoded(draw(changed(header)), data)


def _entry(draw: st.DrawFn, content: bytes) -> bytes:
    """A tensor of another dtype, another shape or another name, one too few or one too many."""
    header, data = decoded(content)
    name = draw(st.sampled_from(_names(header)))
    entry: dict[str, Any] = header[name]
    match draw(st.sampled_from(["dtype", "shape", "flat", "name", "without", "more"])):
        case "dtype":
            entry["dtype"] = draw(st.sampled_from(sorted(DTYPE_BYTES)))
        case "shape":
            entry["shape"] = entry["shape"][::-1]
        case "flat":
            entry["shape"] = [1] * draw(st.integers(0, 40)) + entry["shape"]
        case "name":
            header[draw(TEXTS)] = header.pop(name)
        case "without":
            return _without(header, name, data)
        case "more":
            header[draw(TEXTS)] = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
    return encoded(header, data)


def _without(header: Header, name: str, data: bytes) -> bytes:
    start, end = header.pop(name)["data_offsets"]
    for other in _names(header):
        offsets = header[other]["data_offsets"]
        if offsets[0] >= end:
            header[other]["data_offsets"] = [offset - (end - start) for offset in offsets]
    return encoded(header, data[:start] + data[end:])


def _facts(draw: st.DrawFn, content: bytes) -> bytes:
    """Anything at one place of the facts."""
    header, data = decoded(content)
    metadata: Mapping[str, str] = header.get("__metadata__", {})
    facts = json.loads(metadata.get(FACTS_KEY, "{}"))
    text = draw(changed(facts) | JSON_TEXTS)
    return encoded({**header, "__metadata__": {**metadata, FACTS_KEY: text}}, data)


def _length(draw: st.DrawFn, content: bytes) -> bytes:
    """A header that says it is longer or shorter than it is."""
    return struct.pack("<Q", draw(st.sampled_from(LENGTHS) | st.integers(0, 2**64 - 1))) + content[8:]


def _cut(draw: st.DrawFn, content: bytes) -> bytes:
    """An end that comes too early."""
    return content[: draw(st.integers(1, len(content) - 1))]


def _more(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes after the end."""
    return content + draw(st.binary(min_size=1, max_size=40))


def _flips(draw: st.DrawFn, content: bytes) -> bytes:
    """A few bits that fell over."""
    wrong = bytearray(content)
    for bit in draw(st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=4)):
        wrong[bit // 8] ^= 1 << bit % 8
    return bytes(wrong)


def _nothing_like_it(draw: st.DrawFn, content: bytes) -> bytes:
    """Any bytes."""
    return draw(st.binary(min_size=1, max_size=200))


def _names(header: Header) -> list[str]:
    return sorted(name for name in header if name != "__metadata__")


WAYS: tuple[Way, ...] = (
    _values, _values, _header, _entry, _entry, _facts, _facts, _length, _cut, _more, _flips, _nothing_like_it,
)  # fmt: skip
