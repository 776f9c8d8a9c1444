"""Real processes that most tests of whole federations share."""

import os
from collections.abc import Iterator

import pytest
import torch

from tests.support.nodes import Consortium, consortium
from tests.support.places import Places


@pytest.fixture(scope="package")
def two_nodes(engine: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """A coordinator and two worker agents as real processes; a dead task's claim passes soon.

    Webhooks may lead to this machine, and what failed is sent again soon. The processes are started by a user whose
    files others may usually read.
    """
    folder = tmp_path_factory.mktemp("consortium")
    settings = {"webhook_private_addresses": True, "webhook_retry_seconds": 0.1}
    (folder / "coordinator").mkdir(0o700)
    before = os.umask(0o022)
    try:
        with consortium(folder, ["north", "south"], claim_seconds=3, reconcile_seconds=1, **settings) as running:
            os.umask(before)  # tests of this process that share nothing with it make private files, as ever
            yield running
    finally:
        os.umask(before)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A simulation computes on as many threads as the workers; afterwards there are as many as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
