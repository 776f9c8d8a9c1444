"""Tests of declined jobs with a real executor: other directions or other weights than the federation's."""

import re
from pathlib import Path
from typing import Any

import pytest

from federated.trainable import Full
from tests.support.training import first_instruction, make_node, work_of
from tests.worker_agent.leases import make_lease
from worker_agent.runtime.executor import Executor, Failed, Task
from worker_agent.training.session import open_session


@pytest.mark.parametrize(
    ("facts", "weights", "code", "words"),
    [
        (
            {"directions_digest": "sha256:other"},
            None,
            "directions_differ",
            "the hadamard directions of this worker on cpu differ",
        ),
        ({}, "0" * 64, "model_mismatch", "the weights of bert here are .*, the federation's are 000000000000"),
    ],
)
def test_it_is_declined_and_not_tried_again(
    tmp_path: Path, facts: dict[str, Any], weights: str | None, code: str, words: str
) -> None:
    node = make_node(tmp_path)
    config = {"local_steps": 2, "candidates": 128}
    work = work_of("bert", Full(), config=config).model_copy(update={"algorithm": "fedkseed"})
    instruction = first_instruction(work, open_session(work, "colors", node, 0, {}).facts)
    path = tmp_path / "instruction.safetensors"
    instruction.with_facts(**facts).write(path)
    job = tmp_path / "job"
    job.mkdir()
    base = work.base_model.model_copy(update={"weights_sha256": weights})
    lease = make_lease(work=work.model_copy(update={"base_model": base}).model_dump(mode="json"), dataset="colors")
    executor = Executor(node)
    try:
        outcome = executor.run(Task(lease, path, None, job), lambda: False, lambda _: None)
    finally:
        executor.close()
    assert isinstance(outcome, Failed), outcome
    assert (outcome.code, outcome.transient, outcome.declined) == (code, False, True)
    assert re.search(words, outcome.detail)
