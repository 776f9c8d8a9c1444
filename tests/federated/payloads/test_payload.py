"""Payloads: bytes that are a function of content alone, mapped reading and streamed writing."""

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from federated.payloads.header import HeaderError
from federated.payloads.payload import LazyTensor, Payload, canonical_json
from tests.support.digests import digest, golden_payload

GOLDEN_DIGEST = "2d3ba1efbce44294018d1743581b6c6dcfc5c69e272dc1e6d782a93fd99c9c51"


class TestEncode:
    def test_the_golden_payload_has_the_golden_digest(self) -> None:
        assert digest(golden_payload()) == GOLDEN_DIGEST

    def test_the_bytes_are_those_of_the_safetensors_library(self) -> None:
        payload = golden_payload()
        metadata = {"facts": canonical_json(payload.facts)}
        assert payload.encode() == safetensors.torch.save({name: payload[name] for name in payload}, metadata)

    def test_without_facts_the_bytes_are_those_of_the_library_without_metadata(self) -> None:
        tensors = {"b": torch.ones(3), "a": torch.zeros(2, 2, dtype=torch.float16)}
        assert Payload(tensors).encode() == safetensors.torch.save(tensors)

    def test_the_order_in_which_tensors_and_facts_were_given_does_not_matter(self) -> None:
        one = Payload({"a": torch.ones(1), "b": torch.ones(2)}, {"x": 1, "y": 2})
        other = Payload({"b": torch.ones(2), "a": torch.ones(1)}, {"y": 2, "x": 1})
        assert one.encode() == other.encode()

    def test_a_transposed_tensor_is_stored_by_value(self) -> None:
        tensor = torch.arange(6.0).reshape(2, 3).T
        assert torch.equal(Payload.decode(Payload({"a": tensor}).encode())["a"], tensor)

    def test_facts_that_json_cannot_hold_are_refused(self) -> None:
        with pytest.raises(ValueError, match="Out of range"):
            Payload({}, {"loss": float("nan")}).encode()


class TestDecode:
    def test_tensors_and_facts_come_back(self) -> None:
        payload = golden_payload()
        decoded = Payload.decode(payload.encode())
        assert decoded.facts == payload.facts
        assert list(decoded) == sorted(payload)
        assert all(torch.equal(decoded[name], payload[name]) for name in payload)
        assert {name: decoded.dtype(name) for name in ("b", "wide")} == {"b": "BF16", "wide": "I64"}

    def test_changing_a_decoded_fact_does_not_change_a_second_payload_of_equal_bytes(self) -> None:
        data = golden_payload().encode()
        Payload.decode(data).facts["nested"]["a"] = "changed"
        assert Payload.decode(data).facts["nested"]["a"] == "ü"

    def test_a_dtype_that_payloads_do_not_use_names_the_tensor(self) -> None:
        header = json.dumps({"a": {"dtype": "U32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        with pytest.raises(HeaderError, match="tensor 'a': dtype U32"):
            Payload.decode(len(header).to_bytes(8, "little") + header + bytes(4))

    def test_data_that_does_not_lie_at_a_multiple_of_its_width_is_read(self) -> None:
        header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
        header += b" " * (-(len(header) + 8 + 1) % 4)
        values = torch.tensor([1.0, 2.0])
        data = len(header).to_bytes(8, "little") + header + values.numpy().tobytes()
        assert (len(data) - 8) % 4 != 0
        assert torch.equal(Payload.decode(data)["a"], values)


class TestFiles:
    def test_a_written_file_opens_as_the_same_payload(self, tmp_path: Path) -> None:
        path = tmp_path / "payload.safetensors"
        told = golden_payload().write(path)
        assert told == f"sha256:{GOLDEN_DIGEST}"
        assert digest(Payload.open(path)) == GOLDEN_DIGEST

    def test_the_number_of_threads_does_not_change_the_file(self, tmp_path: Path) -> None:
        lazy = {
            f"t{i}": LazyTensor(torch.float32, (1000,), lambda i=i: torch.full((1000,), float(i))) for i in range(20)
        }
        told = {Payload(lazy).write(tmp_path / f"{threads}", threads=threads) for threads in (1, 2, 4)}
        assert len(told) == 1
        assert torch.equal(Payload.open(tmp_path / "4")["t7"], torch.full((1000,), 7.0))

    def test_an_error_while_a_tensor_is_made_reaches_the_writer(self, tmp_path: Path) -> None:
        def fail() -> torch.Tensor:
            raise ZeroDivisionError

        lazy = {f"t{i}": LazyTensor(torch.float32, (1,), fail) for i in range(9)}
        with pytest.raises(ZeroDivisionError):
            Payload(lazy).write(tmp_path / "x", threads=2)

    @pytest.mark.parametrize("made", [torch.zeros(2, dtype=torch.int64), torch.zeros(3)])
    def test_a_lazy_tensor_that_is_made_otherwise_than_declared_is_refused(self, made: torch.Tensor) -> None:
        payload = Payload({"a": LazyTensor(torch.float32, (2,), lambda: made)})
        with pytest.raises(ValueError, match="tensor 'a' was read as"):
            payload.encode()

    def test_only_the_tensors_that_are_asked_for_are_made(self) -> None:
        asked: list[str] = []

        def make(name: str) -> torch.Tensor:
            asked.append(name)
            return torch.ones(2)

        payload = Payload({name: LazyTensor(torch.float32, (2,), lambda name=name: make(name)) for name in "abc"})
        shapes = [payload.shape(name) for name in payload]
        reference = payload.lazy("c")
        assert shapes == [(2,)] * 3
        assert asked == []
        payload["b"]
        reference.read()
        assert asked == ["b", "c"]

    def test_pieces_are_the_same_from_a_file_from_bytes_and_from_tensors(self, tmp_path: Path) -> None:
        payload = golden_payload()
        payload.write(tmp_path / "payload.safetensors")
        stored = [Payload.open(tmp_path / "payload.safetensors"), Payload.decode(payload.encode()), payload]
        for name, first, count in (("z", 1, 4), ("b", 3, 2), ("wide", 0, 3), ("a", 0, 1), ("ü/empty", 0, 0)):
            pieces = [piece_of(one, name, first, count) for one in stored]
            assert all(torch.equal(piece, payload[name].reshape(-1)[first : first + count]) for piece in pieces)

    def test_a_file_that_was_removed_or_replaced_is_still_read_as_it_was(self, tmp_path: Path) -> None:
        path = tmp_path / "payload.safetensors"
        golden_payload().write(path)
        opened = Payload.open(path)
        Payload({"z": torch.zeros(2, 3)}).write(tmp_path / "other")
        (tmp_path / "other").replace(path)
        assert piece_of(opened, "z", 0, 6).tolist() == [0, 1, 2, 3, 4, 5]
        path.unlink()
        assert opened["z"].flatten().tolist() == piece_of(opened, "z", 0, 6).tolist()

    def test_more_payloads_than_a_process_may_hold_files_are_read(self, tmp_path: Path) -> None:
        path = tmp_path / "payload.safetensors"
        golden_payload().write(path)
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        opened = [Payload.open(path) for _ in range(1100)]
        assert len(os.listdir("/proc/self/fd")) - before <= 256  # noqa: PTH208
        assert all(piece_of(one, "b", 1, 3).tolist() == [1, 2, 3] for one in opened)
        opened.clear()
        assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208

    def test_a_truncated_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "payload.safetensors"
        golden_payload().write(path)
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(HeaderError, match="the file holds"):
            Payload.open(path)


def piece_of(payload: Payload, name: str, first: int, count: int) -> torch.Tensor:
    lazy = payload.lazy(name)
    out = torch.empty(count, dtype=lazy.dtype)
    if count:
        lazy.fill(first, out.view(torch.uint8).numpy().data)
    return out
