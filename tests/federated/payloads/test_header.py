"""Header checks without torch: errors name the invalid tensor."""

import io
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated.payloads.header import HeaderError, check_expected, parse_header
from tests.support.digests import golden_payload

VALID = golden_payload().encode()


def parse(data: bytes) -> Any:
    return parse_header(io.BytesIO(data), len(data))


def file_of(document: Any, data_bytes: int = 0) -> bytes:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(data_bytes)


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


class TestParse:
    def test_a_valid_file_tells_its_tensors_and_facts(self) -> None:
        header = parse(VALID)
        assert header.facts["phase"] == "train"
        assert header.tensors["z"].shape == (2, 3)
        assert header.tensors["b"].dtype == "BF16"
        assert header.data_start + max(one.end for one in header.tensors.values()) == header.file_bytes

    @pytest.mark.parametrize(
        ("data", "tensor", "words"),
        [
            (b"", None, "too short"),
            (b"1234567", None, "too short"),
            ((2**40).to_bytes(8, "little"), None, "is larger than"),
            ((100).to_bytes(8, "little") + b"{}", None, "the file ends after 2"),
            (file_of(b"{"), None, "not JSON"),
            (file_of(b"\xff\xfe"), None, "not JSON"),
            (file_of(b"[" * 100_000), None, "not JSON"),
            (file_of([]), None, "not a JSON object"),
            (file_of({"__metadata__": []}), None, "__metadata__ is not an object"),
            (file_of({"__metadata__": {"facts": 1}}), None, "facts are not text"),
            (file_of({"__metadata__": {"facts": "{"}}), None, "facts are not JSON"),
            (file_of({"__metadata__": {"facts": "[]"}}), None, "facts are not a JSON object"),
            (file_of({"a": 1}), "a", "must have dtype, shape and data_offsets"),
            (file_of({"a": entry(more=1)}, 8), "a", "must have dtype, shape and data_offsets"),
            (file_of({"a": entry(dtype="F8")}, 8), "a", "unknown dtype 'F8'"),
            (file_of({"a": entry(dtype=["F32"])}, 8), "a", "unknown dtype"),
            (file_of({"a": entry(shape=[-2])}, 8), "a", "whole numbers"),
            (file_of({"a": entry(shape=[2.0])}, 8), "a", "whole numbers"),
            (file_of({"a": entry(shape=[True, 2])}, 8), "a", "whole numbers"),
            (file_of({"a": entry(data_offsets=[0])}, 8), "a", "whole numbers"),
            (file_of({"a": entry(shape=[3])}, 8), "a", "8 bytes do not hold shape [3] of F32"),
            (file_of({"a": entry(data_offsets=[4, 12])}, 12), "a", "starts at byte 4, expected 0"),
            (file_of({"a": entry(), "b": entry()}, 16), "b", "starts at byte 0, expected 8"),
            (file_of({"a": entry()}, 7), None, "tensors take 8 bytes, the file holds 7"),
            (file_of({"a": entry()}, 9), None, "tensors take 8 bytes, the file holds 9"),
            (file_of({"a" * 600: entry()}, 8), "a" * 64 + "…", "name has 600 characters"),
        ],
    )
    def test_what_is_wrong_is_named(self, data: bytes, tensor: str | None, words: str) -> None:
        with pytest.raises(HeaderError) as caught:
            parse(data)
        assert caught.value.tensor == tensor
        assert words in caught.value.reason

    def test_too_many_tensors_are_refused(self) -> None:
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        with pytest.raises(HeaderError, match="65537 tensors are more than 65536"):
            parse(file_of({str(number): empty for number in range(65_537)}))

    @given(st.integers(0, len(VALID) - 1))
    def test_a_file_cut_anywhere_is_refused(self, length: int) -> None:
        with pytest.raises(HeaderError):
            parse(VALID[:length])

    @given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=8))
    def test_changed_bytes_are_refused_by_name_or_stay_within_the_file(self, changes: list[tuple[int, int]]) -> None:
        data = bytearray(VALID)
        for position, value in changes:
            data[position] = value
        try:
            header = parse(bytes(data))
        except HeaderError:
            return
        assert all(0 <= one.start <= one.end <= len(data) - header.data_start for one in header.tensors.values())


class TestCheckExpected:
    HEADER = parse(file_of({"a": entry(shape=[1, 2])}, 8))

    def test_the_expected_table_is_accepted(self) -> None:
        check_expected(self.HEADER, {"a": {"dtype": "F32", "shape": [1, 2]}})
        check_expected(self.HEADER, {"a": {"dtype": "F32", "max_shape": [4, 2]}})

    @pytest.mark.parametrize(
        ("expects", "tensor", "words"),
        [
            ({}, "a", "is not expected"),
            ({"a": {"dtype": "F32", "shape": [1, 2]}, "b": {"dtype": "F32", "shape": []}}, "b", "is missing"),
            ({"a": {"dtype": "BF16", "shape": [1, 2]}}, "a", "has dtype F32, expected BF16"),
            ({"a": {"dtype": "F32", "shape": [2, 1]}}, "a", "has shape [1, 2], expected [2, 1]"),
            ({"a": {"dtype": "F32", "max_shape": [1, 1]}}, "a", "at most [1, 1]"),
            ({"a": {"dtype": "F32", "max_shape": [4]}}, "a", "at most [4]"),
        ],
    )
    def test_a_difference_names_the_tensor(
        self, expects: Mapping[str, Mapping[str, Any]], tensor: str, words: str
    ) -> None:
        with pytest.raises(HeaderError) as caught:
            check_expected(self.HEADER, expects)
        assert caught.value.tensor == tensor
        assert words in caught.value.reason
