"""Fixtures for the shared package's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.training import make_node
from worker_agent.settings import AgentSettings


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentSettings]:
    """A node with tiny models of transformers, and data for both tasks."""
    threads = torch.get_num_threads()
    yield make_node(tmp_path_factory.mktemp("node"))
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def zoo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the zoo lies: each of its models is made once."""
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="module")
def root(zoo_folder: Path) -> Iterator[Path]:
    """The zoo's folder, for tests on one thread: tiny tensors gain nothing from a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield zoo_folder
    torch.set_num_threads(threads)
