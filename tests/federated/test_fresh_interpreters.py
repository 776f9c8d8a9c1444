"""Determinism across processes: the same bytes for any hash seed."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.federated.payloads.test_payload import GOLDEN_DIGEST
from tests.support import rounds_by_hand as rounds

ROOT = Path(__file__).resolve().parents[2]
INTERPRETERS = 4


@pytest.fixture(scope="module")
def fresh_digests() -> list[dict[str, str]]:
    """What `tests.support.digests` prints in fresh interpreters, each with another hash seed."""

    def ask(hash_seed: int) -> dict[str, str]:
        environment = os.environ | {"PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.support.digests"]
        answer = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        digests: dict[str, str] = json.loads(answer.stdout.splitlines()[-1])
        return digests

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(ask, range(INTERPRETERS)))


def test_all_make_the_golden_payload(fresh_digests: list[dict[str, str]]) -> None:
    assert [digests["payload"] for digests in fresh_digests] == [GOLDEN_DIGEST] * INTERPRETERS


def test_all_make_the_same_bytes_of_every_sample(fresh_digests: list[dict[str, str]]) -> None:
    states = {f"{sample.algorithm} {index} state" for index, sample in enumerate(rounds.samples())}
    assert states <= fresh_digests[0].keys()
    assert all(digests == fresh_digests[0] for digests in fresh_digests)
