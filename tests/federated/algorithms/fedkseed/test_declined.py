"""A worker that makes other directions than the federation declines the job, as a real executor reports it."""

from pathlib import Path

from federated.trainable import Full
from tests.support.training import first_instruction, make_node, work_of
from tests.worker_agent.leases import make_lease
from worker_agent.executor import Executor, Failed, Task
from worker_agent.training.session import open_session


def test_other_directions_are_declined_and_not_tried_again(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    config = {"local_steps": 2, "candidates": 128}
    work = work_of("bert", Full(), config=config).model_copy(update={"algorithm": "fedkseed"})
    instruction = first_instruction(work, open_session(work, "colors", node, 0, {}).facts)
    path = tmp_path / "instruction.safetensors"
    instruction.with_facts(directions_digest="sha256:other").write(path)
    job = tmp_path / "job"
    job.mkdir()
    lease = make_lease(work=work.model_dump(mode="json"), dataset="colors")
    executor = Executor(node)
    try:
        outcome = executor.run(Task(lease, path, None, job), lambda: False, lambda _: None)
    finally:
        executor.close()
    assert isinstance(outcome, Failed), outcome
    assert (outcome.code, outcome.transient, outcome.declined) == ("directions_differ", False, True)
    assert "this worker makes other hadamard directions" in outcome.detail
