"""Hostile headers: rejected with a HeaderError or read, in bounded memory and time.

FEDLOOM_FUZZ_EXAMPLES sets the number of random examples in each test.
"""

import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from federated.payloads.header import (
    DTYPE_BYTES,
    MAX_HEADER_BYTES,
    MAX_JSON_VALUES,
    Header,
    HeaderError,
    check_expected,
    parse_header,
)
from federated.payloads.payload import Payload
from tests.support.digests import golden_payload

EXAMPLES = int(os.environ.get("FEDLOOM_FUZZ_EXAMPLES", "0")) or 100
FUZZED = settings(
    max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
MOST_MEMORY = 18 * MAX_HEADER_BYTES
"""What one header may take while it is read."""
VALID = golden_payload().encode()
WHOLE = st.integers(-1, 9) | st.sampled_from([2**31, 2**53, 2**60, 2**63 - 1, 2**63, 2**64, 10**400])
SCALAR = (
    st.none() | st.booleans() | WHOLE | st.floats() | st.text(max_size=4) | st.sampled_from(["\ud800", "\x00", "F32"])
)
JSON = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.text(max_size=6) | st.sampled_from(["", "a", "b", "__metadata__", "\ud800", "\x00", "x" * 513])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPE_BYTES, "F8", "", "f32"]) | JSON,
        "shape": st.lists(WHOLE, max_size=40) | JSON,
        "data_offsets": st.lists(WHOLE, min_size=2, max_size=2) | JSON,
    }
)
METADATA = st.fixed_dictionaries({"facts": JSON.map(json.dumps) | st.text(max_size=9) | JSON}) | JSON
DOCUMENTS = st.dictionaries(NAMES, ENTRIES | JSON, max_size=5) | st.fixed_dictionaries(
    {"__metadata__": METADATA, "a": ENTRIES}
)
PACKED = st.lists(
    st.tuples(st.sampled_from(sorted(DTYPE_BYTES)), st.lists(st.integers(0, 3), max_size=3)), max_size=6
)


def parse(data: bytes) -> Header:
    return parse_header(io.BytesIO(data), len(data))


def file_of(raw: bytes, data_bytes: int = 0) -> bytes:
    return struct.pack("<Q", len(raw)) + raw + bytes(data_bytes)


def reads_or_refuses(data: bytes) -> None:
    """What is read lies side by side within the file, and a payload opens as what the header says."""
    header, refusal = read(data)
    if header is None:
        assert (str(refusal) + (refusal.tensor or "")).encode()  # an answer can say it
        with pytest.raises(HeaderError):
            Payload.decode(data)
        return
    places = sorted((one.start, one.end) for one in header.tensors.values())
    assert [start for start, _ in places] == [0, *(end for _, end in places)][: len(places)]
    assert header.data_start + max((end for _, end in places), default=0) == len(data)
    if any(one.dtype in ("U16", "U32", "U64") for one in header.tensors.values()):
        with pytest.raises(HeaderError, match="is not used in payloads"):
            Payload.decode(data)
        return
    payload = Payload.decode(data)
    assert {name: tuple(payload[name].shape) for name in payload} == {
        name: one.shape for name, one in header.tensors.items()
    }


def read(data: bytes) -> tuple[Header | None, HeaderError]:
    """The header, or why it is none."""
    try:
        return parse(data), HeaderError("")
    except HeaderError as refusal:
        return None, refusal


class TestWhateverComes:
    @FUZZED
    @given(st.binary(max_size=200), st.integers(0, 2**64 - 1) | st.integers(0, 64))
    def test_bytes_are_refused_or_read(self, data: bytes, length: int) -> None:
        reads_or_refuses(data)
        reads_or_refuses(struct.pack("<Q", length) + data)

    @FUZZED
    @given(DOCUMENTS, st.integers(0, 64))
    @example({"\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 4)
    @example({"a": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}, 0)
    def test_documents_are_refused_or_read(self, document: Any, data_bytes: int) -> None:
        reads_or_refuses(file_of(json.dumps(document).encode(), data_bytes))

    @FUZZED
    @given(PACKED, st.data())
    def test_entries_that_fit_but_for_one_number_are_refused(
        self, tensors: list[tuple[str, list[int]]], data: st.DataObject
    ) -> None:
        document, position = dict[str, Any](), 0
        for index, (dtype, shape) in enumerate(tensors):
            count = DTYPE_BYTES[dtype]
            for size in shape:
                count *= size
            document[str(index)] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + count]}
            position += count
        reads_or_refuses(file_of(json.dumps(document).encode(), position))
        assert len(parse(file_of(json.dumps(document).encode(), position)).tensors) == len(tensors)
        if tensors:
            entry = document[data.draw(st.sampled_from(sorted(document)))]
            numbers = entry[data.draw(st.sampled_from(["shape", "data_offsets"]))] or entry["data_offsets"]
            at = data.draw(st.integers(0, len(numbers) - 1))
            numbers[at] = data.draw(WHOLE.filter(lambda other: other != numbers[at]))
            reads_or_refuses(file_of(json.dumps(document).encode(), position))

    @FUZZED
    @given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=12), st.integers(0, 40))
    def test_damaged_files_are_refused_or_read(self, changes: list[tuple[int, int]], cut: int) -> None:
        damaged = bytearray(VALID)
        for position, value in changes:
            damaged[position] = value
        reads_or_refuses(bytes(damaged))
        reads_or_refuses(bytes(damaged[: len(damaged) - cut]))

    @FUZZED
    @given(DOCUMENTS, st.integers(0, 64))
    def test_what_an_instruction_expects_is_held_against_anything(self, document: Any, data_bytes: int) -> None:
        expects = {"a": {"dtype": "F32", "max_shape": [4, 4]}, "b": {"dtype": "F32", "shape": [1]}}
        try:
            check_expected(parse(file_of(json.dumps(document).encode(), data_bytes)), expects)
        except HeaderError:
            return
        raise AssertionError("none of these has both tensors")


def listed(value: bytes, count: int) -> bytes:
    return b'{"a":[' + b",".join([value] * count) + b"]}"


def with_facts(text: bytes) -> bytes:
    return json.dumps({"__metadata__": {"facts": text.decode()}}).encode()


def many_names(count: int) -> bytes:
    return b"{" + b",".join(b'"%07d":0' % number for number in range(count)) + b"}"


HALF, ALL = MAX_JSON_VALUES // 2 - 9, MAX_JSON_VALUES - 9
FILES: dict[str, Callable[[], bytes]] = {
    "announces 2^60 bytes": lambda: struct.pack("<Q", 2**60) + b"{}",
    "nested": lambda: file_of(b'{"a":' + b"[" * ALL),
    "empty lists": lambda: file_of(listed(b"[]", MAX_HEADER_BYTES // 3 - 9)),
    "small objects in the facts": lambda: file_of(with_facts(listed(b'{"":0}', HALF))),
    "names": lambda: file_of(many_names(ALL)),
    "names in the facts": lambda: file_of(with_facts(many_names(ALL))),
    "a wide text": lambda: file_of(b'{"a":"' + b"a" * (MAX_HEADER_BYTES - 20) + "😀".encode() + b'"}'),
    "dimensions": lambda: file_of(
        b'{"a":{"dtype":"F32","data_offsets":[0,0],"shape":[' + b"9" * 18 + b",9" * ALL + b"]}}"
    ),
    "escaped quotes": lambda: file_of(b'"' + b'\\"' * (MAX_HEADER_BYTES // 2 - 1) + b"\\"),
}
READ_ALONE = """
import io, resource, sys
from federated.payloads.header import HeaderError, parse_header
data = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    parse_header(io.BytesIO(data), len(data))
except HeaderError:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


class TestLimits:
    @pytest.mark.parametrize("which", FILES)
    def test_memory_is_bounded_whatever_the_header(self, which: str) -> None:
        """Of a process of its own that reads just this."""
        done = subprocess.run(
            [sys.executable, "-c", READ_ALONE], input=FILES[which](), capture_output=True, check=True
        )
        assert int(done.stdout) < MOST_MEMORY

    @pytest.mark.parametrize(
        "document", ['{"a": 1, "a": 2}', '{"__metadata__": {"facts": "{\\"x\\": 1, \\"x\\": 2}"}}']
    )
    def test_a_name_that_comes_twice_is_refused(self, document: str) -> None:
        with pytest.raises(HeaderError, match="the same name twice"):
            parse(file_of(document.encode()))

    def test_more_values_than_the_limit_are_refused_unparsed(self) -> None:
        with pytest.raises(HeaderError, match="header is too large: more than 1048576 JSON values"):
            parse(file_of(listed(b"[]", HALF + 20)))
        commas = json.dumps({"__metadata__": {"x": ",[{" * (MAX_JSON_VALUES // 2)}}).encode()
        assert parse(file_of(commas)).tensors == {}

    def test_other_encodings_than_utf_8_are_refused(self) -> None:
        for encoding in ("utf-16", "utf-32", "utf-16-le"):
            with pytest.raises(HeaderError, match="not JSON"):
                parse(file_of('{"__metadata__": {}}'.encode(encoding)))
