"""The owner's rules, as a table: what is asked, what is allowed, which rule answers."""

from pathlib import Path
from typing import Any

import pytest

from tests.worker_agent.leases import make_lease
from worker_agent import approvals
from worker_agent.errors import ConfigurationError, NotUnderstood
from worker_agent.policy import Node, check
from worker_agent.settings import AgentSettings, PolicySettings

ALGORITHMS = {"fedavg": 1}
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
        ({"max_local_steps": 19}, {"work": {"config": {"local_epochs": 1.0}}}, "policy_steps"),
        ({"max_local_steps": 19}, {"kind": "evaluate"}, None),
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


def test_a_refusal_says_what_would_have_to_change(settings: AgentSettings) -> None:
    asks = settings.model_copy(update={"policy": PolicySettings(approve="ask")})
    refusal = check(make_lease(), Node(asks, ALGORITHMS))
    assert refusal is not None
    assert "worker-agent approve fed_1" in refusal.text


def test_an_approved_federation_is_allowed(settings: AgentSettings) -> None:
    approvals.approve(settings.folder, "fed_1")
    asks = settings.model_copy(update={"policy": PolicySettings(approve="ask")})
    assert check(make_lease(), Node(asks, ALGORITHMS, approvals.approved(settings.folder))) is None
    assert check(make_lease(federation_id="fed_2"), Node(asks, ALGORITHMS, ["fed_1"])) is not None


def test_approvals_add_up_and_last(tmp_path: Path) -> None:
    assert approvals.approved(tmp_path) == frozenset()
    approvals.approve(tmp_path, "fed_1")
    approvals.approve(tmp_path, "fed_2")
    approvals.approve(tmp_path, "fed_1")
    assert approvals.approved(tmp_path) == {"fed_1", "fed_2"}


def test_what_is_no_id_is_not_approved(tmp_path: Path) -> None:
    with pytest.raises(NotUnderstood, match="cannot name a file"):
        approvals.approve(tmp_path, "all of them")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_of_approvals_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "approved.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"approved\.json is damaged"):
        approvals.approved(tmp_path)
