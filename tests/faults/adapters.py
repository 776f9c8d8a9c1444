"""Invariants of a federation that faults delayed."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.support.nodes import Consortium

ADAPTER = "adapter_model.safetensors"


def whole_adapter(nodes: Consortium, federation_id: str, rounds: int) -> bytes:
    """The adapter of a federation of two that ends with each update counted once, and no reason to differ."""
    nodes.end(federation_id)
    shown = nodes.get(federation_id, "rounds")["items"]
    assert [(row["attempt"], row["accepted"], row["not_reproducible"]) for row in shown] == [(1, [0, 1], [])] * rounds
    assert {row["reason"] for row in shown} == {None}, "what held a round up is forgotten when it goes on"
    told = json.loads(nodes.file(federation_id, "provenance.json"))
    assert [[update["ordinal"] for update in row["updates"]] for row in told["rounds"]] == [[0, 1]] * rounds
    assert nodes.events(federation_id).count("job.accepted") == 2 + 2 * rounds, "described, then trained"
    return nodes.file(federation_id, ADAPTER)


def in_round(number: int) -> Any:
    """Whether somebody trains in that round or a later one; for `Consortium.wait`."""

    def holds(federation: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> bool:
        assert federation["state"] == "running", federation
        return len(rounds) >= number and "training" in str(rounds[-1]["waiting_for"])

    return holds
