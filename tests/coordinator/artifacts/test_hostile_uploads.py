"""Hostile uploads with wrong sizes, offsets and bytes: nothing wrong is ever stored.

FEDLOOM_FUZZ_EXAMPLES sets the number of random examples.
"""

import json
import os
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.artifacts.store import objects
from coordinator.settings import get_settings
from tests.coordinator.artifacts.stored import announce, digest_of
from tests.support.service import EnrolledWorker, Service, created

EXAMPLES = int(os.environ.get("FEDLOOM_FUZZ_EXAMPLES", "0")) or 40
FUZZED = settings(
    max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
CHUNK = 16
HUGE = st.sampled_from([2**31, 2**53, 2**60, 2**63 - 1, 2**63, 2**64, 10**300])
CONTENT = st.binary(min_size=1, max_size=3 * CHUNK)
PIECES = st.lists(
    st.tuples(st.sampled_from(["good", "short", "long", "other", "empty"]), st.integers(-1, 4) | HUGE), max_size=6
)
SIZES = st.integers(-2, 5) | HUGE | st.floats() | st.booleans() | st.none() | st.text(max_size=3)
RANGES = st.text(alphabet="bytes=-,0123456789 x\u00b2", max_size=14) | st.builds(
    lambda first, last: f"bytes={first}-{last}",
    st.integers(0, 3 * CHUNK) | HUGE | st.just(""),
    st.integers(0, 3 * CHUNK) | HUGE | st.just(""),
)
SAID = {200, 201, 202, 204, 206, 400, 403, 404, 409, 413, 416, 422}


@pytest.fixture
def tiny_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLOOM_CHUNK_BYTES", str(CHUNK))


def said(answer: httpx.Response) -> httpx.Response:
    assert answer.status_code in SAID, answer.text
    if answer.status_code >= 400:
        assert answer.json()["detail"]
    return answer


def piece(content: bytes, how: str, index: int) -> bytes:
    """What is sent as this chunk."""
    right = content[CHUNK * index : CHUNK * (index + 1)] if 0 <= index < 4 else b"x"
    return {
        "good": right, "short": right[:-1], "long": right + b"+", "other": bytes(len(right)), "empty": b"",
    }[how]  # fmt: skip


@FUZZED
@given(content=CONTENT, pieces=PIECES)
def test_an_upload_is_whole_and_right_or_is_not_there(
    tiny_chunks: None, service: Service, worker: EnrolledWorker, content: bytes, pieces: list[tuple[str, int]]
) -> None:
    announced = created(announce(worker.http, content))
    if announced["state"] != "open":  # the same as an earlier one
        return
    path, chunks = f"/v1/artifacts/uploads/{announced['upload_id']}", -(-len(content) // CHUNK)
    kept: dict[int, bytes] = {}
    for how, index in pieces:
        sent = piece(content, how, index)
        answer = said(worker.http.put(f"{path}/chunks/{index}", content=sent))
        right_size = 0 <= index < chunks and len(sent) == len(content[CHUNK * index : CHUNK * (index + 1)])
        assert answer.is_success == right_size, (how, index, answer.text)
        if right_size:
            kept[index] = sent
    found = worker.http.get(path).json()["chunks_present"]
    assert found == sorted(set(kept) | set(announced["chunks_present"]))
    ended = said(worker.http.post(f"{path}/complete"))
    if len(found) < chunks:
        assert ended.json()["code"] == "chunks_missing"
    elif chunks == 1 and set(kept) == {0}:
        assert ended.is_success == (kept[0] == content)
        assert (objects.size_of(digest_of(content)) == len(content)) == (kept[0] == content)


@FUZZED
@given(size=SIZES, digest=st.text(max_size=5) | st.just("sha256:" + "0" * 64) | st.none() | st.integers())
def test_an_announcement_is_taken_or_refused_by_its_pointer(
    tiny_chunks: None, service: Service, worker: EnrolledWorker, size: Any, digest: Any
) -> None:
    text = json.dumps({"size_bytes": size, "digest": digest})  # NaN too, which httpx would not send
    headers = {"Content-Type": "application/json"}
    answer = said(worker.http.post("/v1/artifacts/uploads", content=text, headers=headers))
    if answer.status_code == 422:
        assert {error["pointer"] for error in answer.json()["errors"]} <= {"/size_bytes", "/digest", ""}
    if answer.status_code == 201:
        assert 1 <= answer.json()["chunks"] <= -(-get_settings().max_artifact_bytes // CHUNK)


@FUZZED
@given(text=RANGES)
def test_a_range_gives_bytes_of_the_artifact_or_a_reason(service: Service, worker: EnrolledWorker, text: str) -> None:
    content = bytes(range(2 * CHUNK))
    digest = digest_of(content)
    if created(announce(worker.http, content))["state"] != "complete":
        _put(worker, content)
    header = text.encode("latin-1").strip()
    answer = said(worker.http.get(f"/v1/artifacts/{digest}", headers={"Range": header}))
    if answer.status_code == 206:
        assert answer.content
        assert answer.content in content
        assert int(answer.headers["content-length"]) == len(answer.content)
    elif answer.status_code == 200:
        assert answer.content == content


def _put(worker: EnrolledWorker, content: bytes) -> None:
    path = f"/v1/artifacts/uploads/{created(announce(worker.http, content))['upload_id']}"
    worker.http.put(f"{path}/chunks/0", content=content).raise_for_status()
    worker.http.post(f"{path}/complete").raise_for_status()
