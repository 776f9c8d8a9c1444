"""The owner's rules as a table: the request, the setting, and the rule that refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch

from federated import registry
from federated.payloads.payload import Payload
from federated.trainable import Lora
from tests.worker_agent.leases import make_lease
from worker_agent.node.policy import Node, check, check_instruction
from worker_agent.settings import AgentSettings, PolicySettings

ALGORITHMS = {"fedavg": 1}
INSTRUCTION = {"digest": "sha256:" + "b" * 64, "size_bytes": 1000}
LORA = {"kind": "lora", "r": 4}


def refused_by(settings: AgentSettings, policy: dict[str, Any], lease: dict[str, Any]) -> str | None:
    node = Node(settings.model_copy(update={"policy": PolicySettings(**policy)}), ALGORITHMS)
    refusal = check(make_lease(**lease), node)
    return refusal.rule if refusal is not None else None


@pytest.mark.parametrize(
    ("policy", "lease", "rule"),
    [
        ({}, {}, None),
        ({"algorithms": ["fedavg"]}, {}, None),
        ({"algorithms": []}, {}, "policy_algorithm"),
        ({}, {"work": {"algorithm": "flexlora"}}, "algorithm_missing"),
        ({}, {"work": {"algorithm_revision": 2}}, "algorithm_missing"),
        ({"datasets": ["messages"]}, {}, None),
        ({"datasets": ["other"]}, {}, "policy_dataset"),
        ({}, {"dataset": "secrets"}, "data_missing"),
        ({}, {"work": {"base_model": {"id": "large"}}}, "model_missing"),
        ({"max_rank": 4}, {}, None),
        ({"max_rank": 3}, {}, "policy_rank"),
        ({"max_rank": 4}, {"work": {"trainable": LORA | {"rank_pattern": {"query": 5}}}}, "policy_rank"),
        ({"max_rank": 1}, {"work": {"trainable": {"kind": "prefix"}}}, None),
        ({"max_local_steps": 20}, {}, None),
        ({"max_local_steps": 19}, {}, "policy_steps"),
        ({"max_local_steps": 19}, {"work": {"config": {"local_epochs": 1.0}}}, None),
        ({"max_local_steps": 19}, {"kind": "describe", "round_kind": None}, "policy_steps"),
        ({"max_local_steps": 19}, {"kind": "evaluate"}, None),
        ({"max_download_bytes": 999}, {}, None),
        ({"max_download_bytes": 1000}, {"instruction": INSTRUCTION}, None),
        ({"max_download_bytes": 999}, {"instruction": INSTRUCTION}, "policy_download"),
        ({}, {"instruction": INSTRUCTION}, None),
        ({"organizations": ["Bank"]}, {}, "policy_organization"),
        ({"organizations": ["Bank"]}, {"owner_name": "Clinic"}, "policy_organization"),
        ({"organizations": ["Bank"]}, {"owner_name": "Bank"}, None),
        ({"approve": "ask"}, {}, "policy_approval"),
        ({"approve": "ask", "algorithms": []}, {}, "policy_approval"),
    ],
)
def test_the_first_rule_that_forbids_answers(
    settings: AgentSettings, policy: dict[str, Any], lease: dict[str, Any], rule: str | None
) -> None:
    assert refused_by(settings, policy, lease) == rule


class TestTheRankOfAnInstruction:
    """Clients may have ranks of their own: then only the downloaded instruction says what is asked."""

    def node(self, settings: AgentSettings, most: int | None) -> Node:
        return Node(settings.model_copy(update={"policy": PolicySettings(max_rank=most)}), ALGORITHMS)

    def instruction(self, folder: Path, *names: str) -> Path:
        path = folder / "instruction.safetensors"
        Payload({name: torch.zeros(5, 3) for name in names}).write(path)
        return path

    @pytest.mark.parametrize(("most", "rule"), [(None, None), (5, None), (4, "policy_rank")])
    @pytest.mark.parametrize("name", ["layer.query.lora_A.weight", "words.lora_embedding_A"])
    def test_is_held_against_the_limit(
        self, settings: AgentSettings, tmp_path: Path, name: str, most: int | None, rule: str | None
    ) -> None:
        refusal = check_instruction(self.instruction(tmp_path, name, "head.weight"), self.node(settings, most))
        assert (refusal and refusal.rule) == rule
        assert refusal is None or (name in refusal.text and "rank 5" in refusal.text)

    def test_of_what_is_not_trained_does_not_count(self, settings: AgentSettings, tmp_path: Path) -> None:
        path = self.instruction(tmp_path, "layer.query.lora_A.weight/learned", "layer.query.lora_B.weight")
        assert check_instruction(path, self.node(settings, 1)) is None

    def test_what_cannot_be_read_is_left_to_whoever_opens_it(self, settings: AgentSettings, tmp_path: Path) -> None:
        path = tmp_path / "instruction.safetensors"
        path.write_bytes(b"nothing")
        assert check_instruction(path, self.node(settings, 1)) is None


def test_a_rank_above_the_limit_is_only_refused_where_the_algorithm_would_ask_for_it(settings: AgentSettings) -> None:
    """Over every installed algorithm: what its config says it would ask decides."""
    asked = []
    for name, algorithm in registry.algorithms().items():
        work = {"algorithm": name, "algorithm_revision": algorithm.revision, "trainable": LORA | {"r": 64}}
        node = Node(settings.model_copy(update={"policy": PolicySettings(max_rank=8)}), {name: algorithm.revision})
        refusal = check(make_lease(work=work | {"config": {}}), node)
        asked.append(registry.make_config(name, {}).largest_rank(Lora(r=64), 8))
        assert (refusal is None) == (asked[-1] <= 8)
    assert {8, 64} <= set(asked)


def test_a_refusal_says_what_would_have_to_change(settings: AgentSettings) -> None:
    asks = settings.model_copy(update={"policy": PolicySettings(approve="ask")})
    refusal = check(make_lease(), Node(asks, ALGORITHMS))
    assert refusal is not None
    assert "worker-agent approve fed_1" in refusal.text
