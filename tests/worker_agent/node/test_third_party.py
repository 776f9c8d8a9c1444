"""Algorithms of other distributions at a node: only those that the policy names, and a word about unusable ones."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.foreign_distribution import FEDPROX, Install, installing
from tests.worker_agent.leases import make_lease
from worker_agent.doctor import examine
from worker_agent.node.capabilities import allowed_algorithms, installed_algorithms
from worker_agent.node.policy import Node, check
from worker_agent.settings import AgentSettings, PolicySettings


@pytest.fixture
def add(tmp_path: Path) -> Iterator[Install]:
    (tmp_path / "site").mkdir()
    with installing(tmp_path / "site") as add:
        yield add


def with_policy(settings: AgentSettings, *algorithms: str) -> AgentSettings:
    return settings.model_copy(update={"policy": PolicySettings(algorithms=algorithms or None)})


def test_one_is_offered_and_run_only_where_the_policy_names_it(settings: AgentSettings, add: Install) -> None:
    add("fedloom-fedprox", "fedprox = fedprox", FEDPROX)
    lease = make_lease(work={"algorithm": "fedprox", "config": {"local_steps": 2}})
    for named, rule in ((False, "policy_algorithm"), (True, None)):
        ours = with_policy(settings, "fedprox") if named else with_policy(settings)
        assert ("fedprox" in allowed_algorithms(ours)) == named
        refusal = check(lease, Node(ours, installed_algorithms()))
        assert (refusal.rule if refusal else None) == rule


def test_the_doctor_names_the_unusable_and_those_that_are_not_allowed(settings: AgentSettings, add: Install) -> None:
    add("fedloom-fedprox", "fedprox = fedprox", FEDPROX)
    add("other", "broken = broken", {"__init__.py": "import no_such_module"})
    findings = {finding.step: finding for finding in examine(with_policy(settings))}
    assert findings["algorithms"].text.endswith("(not allowed by policy.algorithms: fedprox)")
    assert findings["algorithm broken"].well is False
    assert "of other, is left out: its package cannot be imported" in findings["algorithm broken"].text
    assert "no_such_module" in findings["algorithm broken"].text
