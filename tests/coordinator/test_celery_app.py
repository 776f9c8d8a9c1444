"""The background process: which tasks there are, and what beat wakes."""

import ast
from pathlib import Path

import pytest

import coordinator
from coordinator.celery_app import beat_schedule, load_tasks, renew_beat, worker_arguments
from coordinator.db.sessions import reading, utcnow
from coordinator.models import Process
from coordinator.operations.heartbeats import heartbeat, stale_roles
from coordinator.queue import wakeups
from coordinator.settings import Settings, get_settings

NAMES = {value for name, value in vars(wakeups).items() if name.isupper() and isinstance(value, str) and "." in value}


def test_every_nudged_name_is_a_registered_task() -> None:
    load_tasks()
    own = {name for name in wakeups.celery.tasks if not name.startswith("celery.")}
    assert own == NAMES
    assert "rounds.advance" in own


def test_nothing_is_nudged_by_a_name_that_is_not_in_the_list() -> None:
    """Every call of nudge or send names a constant of `coordinator.queue.wakeups`."""
    constants = {
        name for name, value in vars(wakeups).items() if name.isupper() and isinstance(value, str) and value in NAMES
    }
    files = [path.read_text(encoding="utf-8") for path in Path(coordinator.__file__).parent.rglob("*.py")]
    named = {
        ast.unparse(node.args[1]).removeprefix("nudge.")
        for source in files
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "nudge"
    }
    assert "ADVANCE_ROUND" in named
    assert named <= constants


def test_beat_drops_what_was_not_taken_within_a_period() -> None:
    settings = Settings(reconcile_seconds=2.0)
    schedule = beat_schedule(settings)
    assert set(schedule) == {
        wakeups.RECONCILE,
        wakeups.RENEW_PROCESS,
        wakeups.RESUME_UPLOADS,
        wakeups.COLLECT,
        wakeups.FORGET_DELIVERIES,
    }
    assert schedule[wakeups.RECONCILE]["schedule"] == 2.0
    for entry in schedule.values():
        assert entry["options"]["expires"] == entry["schedule"]


def test_one_machine_works_in_threads_and_several_in_processes() -> None:
    assert "--pool=threads" in worker_arguments(Settings())
    assert "--pool=prefork" in worker_arguments(Settings(broker_url="redis://127.0.0.1"))


def test_messages_are_json_and_results_are_not_kept() -> None:
    configuration = wakeups.celery.conf
    assert (configuration.task_serializer, list(configuration.accept_content)) == ("json", ["json"])
    assert (configuration.task_ignore_result, configuration.result_backend) == (True, None)
    assert configuration.worker_prefetch_multiplier == 1
    assert not configuration.task_acks_late


class TestProcesses:
    def stale(self) -> list[str]:
        with reading() as session:
            return list(stale_roles(session, utcnow()))

    def test_the_task_that_beat_sends_says_that_beat_lives(self, data_folder: Path) -> None:
        assert self.stale() == ["background", "beat"]
        renew_beat()
        assert self.stale() == ["background"]

    def test_a_process_says_so_while_it_runs(self, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FEDLOOM_PROCESS_RENEW_SECONDS", "0.01")
        get_settings.cache_clear()
        with heartbeat("background"):
            first = self.renewed_at(after=None)
            self.renewed_at(after=first)
            assert self.stale() == ["beat"]
        assert self.stale() == ["background", "beat"]

    def renewed_at(self, after: object) -> object:
        """The time in the only row, once it is there and not `after`."""
        while True:
            with reading() as session:
                row = session.query(Process).one_or_none()
            if row is not None and row.renewed_at != after:
                return row.renewed_at
