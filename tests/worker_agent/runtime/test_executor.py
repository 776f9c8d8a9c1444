"""The parent's side of the warm child, with real processes."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from federated.protocol import FailureFacts, JobProgress
from tests.worker_agent.leases import make_lease
from tests.worker_agent.running_agent import wait_until
from worker_agent.runtime.executor import Executor, Failed, Finished, Interrupted, Outcome, Task
from worker_agent.settings import AgentSettings

CHILD = "tests.worker_agent.scripted_child"


@pytest.fixture
def executor(settings: AgentSettings) -> Iterator[Executor]:
    settings.folder.mkdir()
    running = Executor(settings, CHILD)
    yield running
    running.close()


def do(
    executor: Executor,
    folder: Path,
    what: str,
    cancelled: Callable[[], bool] = lambda: False,
    progress: Callable[[JobProgress], None] = lambda _: None,
) -> Outcome:
    task = Task(make_lease(settings={"do": what}), None, None, folder)
    return executor.run(task, cancelled, progress)


class TestWarmChild:
    def test_a_job_ends_with_its_submission_and_its_files(self, executor: Executor, tmp_path: Path) -> None:
        outcome = do(executor, tmp_path, "finish")
        assert isinstance(outcome, Finished)
        assert outcome.submission.metrics == {"loss": 0.25}
        assert (tmp_path / "update.safetensors").read_bytes() == b"update 11  none"

    def test_the_next_job_meets_the_same_process(self, executor: Executor, tmp_path: Path) -> None:
        executor.warm_up()
        first = executor.pid
        do(executor, tmp_path, "finish")
        do(executor, tmp_path, "finish")
        assert executor.pid == first

    def test_progress_is_passed_on(self, executor: Executor, tmp_path: Path) -> None:
        told: list[JobProgress] = []
        do(executor, tmp_path, "finish", progress=told.append)
        assert told == [JobProgress(done=1, total=2, metrics={"loss": 0.5})]

    def test_a_number_that_json_cannot_carry_is_left_out(self, executor: Executor, tmp_path: Path) -> None:
        told: list[JobProgress] = []
        assert isinstance(do(executor, tmp_path, "diverge", progress=told.append), Finished)
        assert told[-1].metrics == {"accuracy": 0.5}

    @pytest.mark.parametrize(
        ("what", "outcome"),
        [
            ("decline", Failed("data_empty", "no rows", transient=False, declined=True, facts=FailureFacts(count=0))),
            ("fail", Failed("training_failed", "loss is NaN", transient=False)),
        ],
    )
    def test_a_failure_is_told_as_the_child_told_it(
        self, executor: Executor, tmp_path: Path, what: str, outcome: Failed
    ) -> None:
        assert do(executor, tmp_path, what) == outcome

    def test_a_result_outside_the_protocol_is_a_final_failure(self, executor: Executor, tmp_path: Path) -> None:
        outcome = do(executor, tmp_path, "nonsense")
        assert isinstance(outcome, Failed)
        assert (outcome.code, outcome.transient) == ("executor_not_understood", False)

    def test_closing_ends_the_process(self, executor: Executor) -> None:
        executor.warm_up()
        pid = executor.pid
        executor.close()
        assert pid is not None
        assert not psutil.pid_exists(pid)
        assert executor.pid is None


class TestDeath:
    @pytest.mark.parametrize(("what", "reason"), [("kill", "signal SIGKILL"), ("exit", "exit code 3")])
    def test_a_child_that_dies_fails_its_job_with_the_reason(
        self, executor: Executor, tmp_path: Path, what: str, reason: str
    ) -> None:
        outcome = do(executor, tmp_path, what)
        assert isinstance(outcome, Failed)
        assert (outcome.code, outcome.transient) == ("executor_died", True)
        assert reason in outcome.detail

    def test_the_next_job_meets_a_new_process(self, executor: Executor, tmp_path: Path) -> None:
        do(executor, tmp_path, "kill")
        assert isinstance(do(executor, tmp_path, "finish"), Finished)

    def test_a_child_that_died_between_jobs_costs_nothing(self, executor: Executor, tmp_path: Path) -> None:
        do(executor, tmp_path, "finish")
        assert executor.pid is not None
        child = psutil.Process(executor.pid)
        child.kill()
        wait_until(lambda: child.status() == psutil.STATUS_ZOMBIE)
        assert isinstance(do(executor, tmp_path, "finish"), Finished)

    def test_a_module_that_cannot_be_imported_is_a_failure(self, settings: AgentSettings, tmp_path: Path) -> None:
        outcome = do(Executor(settings, "no_such_module"), tmp_path, "finish")
        assert isinstance(outcome, Failed)
        assert "exit code 1" in outcome.detail


class TestCanceling:
    def test_a_cancelled_job_is_interrupted_and_the_child_stays(self, executor: Executor, tmp_path: Path) -> None:
        executor.warm_up()
        pid = executor.pid
        started: list[JobProgress] = []
        outcome = do(executor, tmp_path, "wait", cancelled=lambda: bool(started), progress=started.append)
        assert (outcome, executor.pid) == (Interrupted(), pid)
        assert isinstance(do(executor, tmp_path, "finish"), Finished)

    def test_a_child_that_does_not_leave_the_job_is_killed(self, settings: AgentSettings, tmp_path: Path) -> None:
        settings.folder.mkdir()
        executor = Executor(settings.model_copy(update={"cancel_seconds": 0.1}), CHILD)
        started: list[JobProgress] = []
        outcome = do(executor, tmp_path, "ignore", cancelled=lambda: bool(started), progress=started.append)
        assert (outcome, executor.pid) == (Interrupted(), None)


class TestRecycling:
    def test_a_child_is_replaced_after_so_many_jobs(self, settings: AgentSettings, tmp_path: Path) -> None:
        settings.folder.mkdir()
        executor = Executor(settings.model_copy(update={"jobs_per_executor": 2}), CHILD)
        do(executor, tmp_path, "finish")
        assert executor.pid is not None
        do(executor, tmp_path, "finish")
        assert executor.pid is None

    def test_a_child_is_replaced_when_its_memory_grew_past_the_bound(
        self, settings: AgentSettings, tmp_path: Path
    ) -> None:
        settings.folder.mkdir()
        executor = Executor(settings.model_copy(update={"executor_growth_bytes": 32 * 1024 * 1024}), CHILD)
        do(executor, tmp_path, "finish")
        do(executor, tmp_path, "finish")
        assert executor.pid is not None
        do(executor, tmp_path, "grow")
        assert executor.pid is None


def test_a_job_is_done_in_another_process(executor: Executor, tmp_path: Path) -> None:
    outcome = do(executor, tmp_path, "finish")
    assert isinstance(outcome, Finished)
    assert outcome.submission.environment["pid"] != str(os.getpid())
