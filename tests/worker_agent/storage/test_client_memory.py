"""The memory chain of a client."""

import hashlib
from pathlib import Path

import pytest

from federated.protocol import MemoryReference
from tests.worker_agent.leases import make_lease
from worker_agent.errors import ConfigurationError, NotUnderstood
from worker_agent.storage.client_memory import MemoryChain


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def keep(chain: MemoryChain, folder: Path, content: bytes, client_id: str = "clt_1") -> MemoryReference:
    source = folder / "memory.safetensors"
    source.write_bytes(content)
    chain.keep("fed_1", client_id, source, digest(content))
    source.unlink()
    return MemoryReference(round_number=1, digest=digest(content))


@pytest.fixture
def chain(tmp_path: Path) -> MemoryChain:
    return MemoryChain(tmp_path / "memory")


def find(chain: MemoryChain, reference: MemoryReference | None, client_id: str = "clt_1") -> bytes | None:
    path = chain.find("fed_1", client_id, reference)
    return None if path is None else path.read_bytes()


def test_the_memory_a_lease_names_is_found(chain: MemoryChain, tmp_path: Path) -> None:
    reference = keep(chain, tmp_path, b"one")
    assert find(chain, reference) == b"one"


def test_a_lease_that_names_none_starts_without(chain: MemoryChain, tmp_path: Path) -> None:
    keep(chain, tmp_path, b"one")
    assert find(chain, None) is None


def test_a_lost_memory_is_none(chain: MemoryChain) -> None:
    assert find(chain, MemoryReference(round_number=1, digest=digest(b"lost"))) is None


def test_the_accepted_one_and_what_is_newer_are_kept(chain: MemoryChain, tmp_path: Path) -> None:
    oldest, accepted, newer = (keep(chain, tmp_path, content) for content in (b"1", b"2", b"3"))
    assert find(chain, accepted) == b"2"
    assert find(chain, oldest) is None
    assert find(chain, newer) == b"3"
    assert find(chain, accepted) is None


def test_a_job_done_twice_starts_twice_from_the_same_memory(chain: MemoryChain, tmp_path: Path) -> None:
    accepted = keep(chain, tmp_path, b"accepted")
    assert find(chain, accepted) == b"accepted"
    keep(chain, tmp_path, b"rejected")
    assert find(chain, accepted) == b"accepted"


def test_the_same_memory_kept_twice_is_one(chain: MemoryChain, tmp_path: Path) -> None:
    keep(chain, tmp_path, b"1")
    keep(chain, tmp_path, b"2")
    keep(chain, tmp_path, b"1")
    assert len(list((tmp_path / "memory").rglob("*.safetensors"))) == 2


def test_a_damaged_memory_counts_as_lost(chain: MemoryChain, tmp_path: Path) -> None:
    reference = keep(chain, tmp_path, b"one")
    next((tmp_path / "memory").rglob("*.safetensors")).write_bytes(b"bad")
    assert find(chain, reference) is None
    assert list((tmp_path / "memory").rglob("*.safetensors")) == []


def test_two_clients_of_one_worker_do_not_share(chain: MemoryChain, tmp_path: Path) -> None:
    reference = keep(chain, tmp_path, b"one", client_id="clt_1")
    assert find(chain, reference, client_id="clt_2") is None


def test_an_id_from_outside_cannot_leave_the_folder(chain: MemoryChain, tmp_path: Path) -> None:
    with pytest.raises(NotUnderstood, match="cannot name a file"):
        keep(chain, tmp_path, b"one", client_id="../../etc")


class TestLastJob:
    def test_it_is_what_was_told_last_with_the_newest_memory(self, chain: MemoryChain, tmp_path: Path) -> None:
        instruction = tmp_path / "instruction"
        for number in (1, 2):
            keep(chain, tmp_path, f"memory {number}".encode())
            instruction.write_bytes(f"instruction {number}".encode())
            chain.keep_job(make_lease(round_number=number), instruction)
            instruction.unlink()
        last = chain.last_job("fed_1", "clt_1")
        assert last.lease.round_number == 2
        assert last.instruction.read_bytes() == b"instruction 2"
        assert last.memory is not None
        assert last.memory.read_bytes() == b"memory 2"

    def test_it_is_no_memory_to_start_from(self, chain: MemoryChain, tmp_path: Path) -> None:
        reference = keep(chain, tmp_path, b"one")
        (tmp_path / "instruction").write_bytes(b"told")
        chain.keep_job(make_lease(), tmp_path / "instruction")
        assert find(chain, reference) == b"one"
        keep(chain, tmp_path, b"two")

    def test_of_a_client_that_keeps_nothing_nothing_is_kept(self, chain: MemoryChain, tmp_path: Path) -> None:
        (tmp_path / "instruction").write_bytes(b"told")
        chain.keep_job(make_lease(), tmp_path / "instruction")
        with pytest.raises(ConfigurationError, match="has no memory of client clt_1 of federation fed_1"):
            chain.last_job("fed_1", "clt_1")
