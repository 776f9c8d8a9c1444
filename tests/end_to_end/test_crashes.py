"""SIGKILL in the middle of a round: the federation ends, with the bits of the undisturbed run."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.support.nodes import Consortium

ADAPTER = "adapter_model.safetensors"
CONFIG = {"local_steps": 60, "batch_size": 8, "learning_rate": 0.02}


@pytest.fixture(scope="module")
def undisturbed(two_nodes: Consortium) -> bytes:
    """The adapter of a run in which nothing died."""
    federation_id = two_nodes.start(config=CONFIG)
    two_nodes.end(federation_id)
    return two_nodes.file(federation_id, ADAPTER)


def in_the_second_round(federation: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> bool:
    """Somebody trains in the second round."""
    return len(rounds) == 2 and "training" in str(rounds[1]["waiting_for"])


def checked(two_nodes: Consortium, federation_id: str) -> bytes:
    """The adapter of a run that ended with no reason to differ."""
    two_nodes.end(federation_id)
    rounds = two_nodes.get(federation_id, "rounds")["items"]
    assert [(row["attempt"], row["not_reproducible"]) for row in rounds] == [(1, [])] * 3
    return two_nodes.file(federation_id, ADAPTER)


def until_another(two_nodes: Consortium, federation_id: str, kind: str) -> None:
    """Waits for one more event of this kind, or for the end."""
    before = two_nodes.events(federation_id).count(kind)

    def happened(federation: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> bool:
        return federation["state"] != "running" or two_nodes.events(federation_id).count(kind) > before

    two_nodes.wait(federation_id, happened)


class TestSigkill:
    @pytest.mark.parametrize("role", ["background", "web", "beat"])
    def test_of_a_coordinator_process_changes_no_bit(
        self, two_nodes: Consortium, undisturbed: bytes, role: str
    ) -> None:
        federation_id = two_nodes.start(config=CONFIG)
        two_nodes.wait(federation_id, in_the_second_round)
        killed = two_nodes.installation.kill(role)
        two_nodes.installation.wait_until_restarted(role, killed)
        assert checked(two_nodes, federation_id) == undisturbed

    @pytest.mark.slow
    def test_of_the_background_process_at_every_step_changes_no_bit(
        self, two_nodes: Consortium, undisturbed: bytes
    ) -> None:
        federation_id = two_nodes.start(config=CONFIG)
        two_nodes.wait(federation_id, in_the_second_round)
        for kind in ("job.submitted", "round.aggregating", "round.collecting"):
            until_another(two_nodes, federation_id, kind)
            killed = two_nodes.installation.kill("background")
            two_nodes.installation.wait_until_restarted("background", killed)
        assert checked(two_nodes, federation_id) == undisturbed

    def test_of_a_worker_changes_no_bit(self, two_nodes: Consortium, undisturbed: bytes) -> None:
        federation_id = two_nodes.start(config=CONFIG)
        two_nodes.wait(federation_id, in_the_second_round)
        two_nodes.nodes[1].kill()
        two_nodes.nodes[1].start()
        assert checked(two_nodes, federation_id) == undisturbed

    @pytest.mark.slow
    def test_of_everything_at_once_changes_no_bit(self, two_nodes: Consortium, undisturbed: bytes) -> None:
        federation_id = two_nodes.start(config=CONFIG)
        two_nodes.wait(federation_id, in_the_second_round)
        for node in two_nodes.nodes:
            node.kill()
        two_nodes.installation.kill_supervisor()
        two_nodes.installation.start()
        for node in two_nodes.nodes:
            node.start()
        assert checked(two_nodes, federation_id) == undisturbed
