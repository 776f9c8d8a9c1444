"""Fixtures for the shared package's tests."""

from collections.abc import Iterator

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
