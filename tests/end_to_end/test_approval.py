"""A node whose owner wants to be asked: the federation waits, and completes once its terms were approved."""

import json
from collections.abc import Iterator
from pathlib import Path
from unicodedata import normalize

import pytest

from tests.support.nodes import DATASET, Consortium, joined

CLINIC = "Städtische Klinik, Süd"
NAME = "Befunde: Süd/Nord"

pytestmark = pytest.mark.once


@pytest.fixture
def asking_node(two_nodes: Consortium, tmp_path: Path) -> Iterator[Consortium]:
    """One agent with `approve = "ask"`, as a real process; its owner's editor decomposes an `ä`."""
    policy = f'approve = "ask"\norganizations = ["{normalize("NFD", CLINIC)}"]\n'
    with joined(two_nodes.installation, tmp_path, [CLINIC], policy=policy) as running:
        yield running


def test_a_federation_is_declined_shown_approved_and_completed(asking_node: Consortium) -> None:
    (node,) = asking_node.nodes
    federation_id = asking_node.start(rounds=1, name=NAME)
    asking_node.wait(federation_id, lambda federation, rounds: federation["clients"]["out"] == 1)
    (client,) = asking_node.get(federation_id, "clients")["items"]
    assert client["reason"] == "policy_approval"
    assert "worker-agent approve, with the federation's id" in client["reason_detail"]

    unsure = node.command("approve", federation_id)
    assert (unsure.returncode, "columns: text, label" in unsure.stdout) == (1, True), unsure.stdout + unsure.stderr
    sure = node.command("approve", federation_id, "--yes")
    assert sure.returncode == 0, sure.stdout + sure.stderr
    assert f"owner: '{CLINIC}'" in sure.stdout
    assert f"data set: '{DATASET}'" in sure.stdout
    shown = node.command("data", "show", normalize("NFD", DATASET))
    assert f"{DATASET}: " in shown.stdout, shown.stderr
    node.http.post(f"/v1/clients/{client['id']}/restore").raise_for_status()

    assert asking_node.end(federation_id)["rounds_done"] == 1
    assert json.loads(asking_node.file(federation_id, "provenance.json"))["federation"]["name"] == NAME
    assert f"`{NAME}`" in asking_node.file(federation_id, "README.md").decode()
