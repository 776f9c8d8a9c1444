"""Fixtures for the shared package's tests."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.support.training import make_node
from worker_agent.settings import AgentSettings

ROOT = Path(__file__).resolve().parents[2]
INTERPRETERS = 10


@pytest.fixture(scope="session")
def fresh_digests() -> list[dict[str, str]]:
    """What `tests.support.digests` prints in ten fresh interpreters, each with another hash seed."""

    def ask(hash_seed: int) -> dict[str, str]:
        environment = os.environ | {"PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.support.digests"]
        answer = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        digests: dict[str, str] = json.loads(answer.stdout.splitlines()[-1])
        return digests

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(ask, range(INTERPRETERS)))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentSettings]:
    """A node with tiny models of transformers, and data for both tasks."""
    threads = torch.get_num_threads()
    yield make_node(tmp_path_factory.mktemp("node"))
    torch.set_num_threads(threads)
