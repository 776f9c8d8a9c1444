"""The doctor's rehearsal: a step with each model over each data set, before any federation."""

from pathlib import Path

import pytest

from tests.support import tiny_models, zoo
from worker_agent.doctor import Finding, examine
from worker_agent.runtime.agent import only_agent
from worker_agent.settings import AgentSettings, DatasetSettings

MODELS = ("bert", "llama", "llama-headless", "mpnet", "roberta")
NO_DEFAULT = {"mpnet"}
"""PEFT has no choice of its own for these."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> AgentSettings:
    root = tmp_path_factory.mktemp("node")
    colors = tiny_models.write_rows(root / "colors.jsonl", tiny_models.color_rows(60))
    instructions = tiny_models.write_rows(root / "instructions.jsonl", tiny_models.instruction_rows(60))
    notes = tiny_models.write_rows(root / "notes.jsonl", [{"note": f"the {number}"} for number in range(60)])
    return AgentSettings(
        url="http://127.0.0.1:9",
        folder=root / "worker",
        models={name: str(zoo.folder(name, root)) for name in MODELS},
        datasets={
            "colors": DatasetSettings(path=colors),
            "instructions": DatasetSettings(path=instructions),
            "notes": DatasetSettings(path=notes),
        },
        device="cpu",
    )


def rehearsals(node: AgentSettings) -> dict[str, Finding]:
    return {finding.step: finding for finding in examine(node) if " over " in finding.step}


def test_each_model_takes_a_step_over_each_data_set_of_a_usual_task_or_says_what_a_federation_would_be_told(
    node: AgentSettings,
) -> None:
    found = rehearsals(node)
    assert len(found) == len(MODELS) * len(node.datasets)
    for name in MODELS:
        classifies, writes = found[f"{name} over colors"], found[f"{name} over instructions"]
        assert classifies.well, classifies
        assert ("name target_modules" in classifies.text) == (name in NO_DEFAULT)
        assert writes.well == (name == "llama"), writes
        assert found[f"{name} over notes"].text == "not tried: the columns suit no standard task"
    assert "model_incomplete" in found["llama-headless over instructions"].text
    assert "model_not_causal" in found["roberta over instructions"].text


def test_what_is_not_there_is_not_tried(node: AgentSettings, tmp_path: Path) -> None:
    models = {**node.models, "gone": str(tmp_path / "gone")}
    found = rehearsals(node.model_copy(update={"models": models}))
    assert not any(step.startswith("gone") for step in found)


def test_the_device_is_left_to_an_agent_that_runs(node: AgentSettings, tmp_path: Path) -> None:
    own = node.model_copy(update={"folder": tmp_path / "worker"})
    with only_agent(own.folder):
        found = rehearsals(own)
    assert [finding.text for finding in found.values()] == ["not tried while the agent of this folder runs"]
