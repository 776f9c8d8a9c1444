"""Composition root of the background process and of beat: tasks, schedule and start of the process."""

import os
import signal
import sys
from contextlib import ExitStack
from typing import Any

from celery.beat import Scheduler, Service
from celery.signals import (
    beat_init,
    setup_logging,
    worker_init,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
)

from coordinator import ownership
from coordinator.db.sessions import forget_inherited, utcnow, writing
from coordinator.operations import heartbeats
from coordinator.queue import wakeups
from coordinator.queue.watchdog import Watchdog
from coordinator.rounds import step_pool
from coordinator.settings import Settings, get_settings
from federated.private_files import NotPrivate

COLLECT_SECONDS = 3600.0

celery = wakeups.celery
celery.steps["consumer"].add(Watchdog)
_services = ExitStack()


def load_tasks() -> None:
    """Registers all tasks. Not at import of this module: beat sends only names and needs no torch."""
    from coordinator.artifacts import tasks as artifact_tasks  # noqa: F401
    from coordinator.federations import tasks as federation_tasks  # noqa: F401
    from coordinator.rounds import tasks as round_tasks  # noqa: F401
    from coordinator.webhooks import tasks as webhook_tasks  # noqa: F401


@celery.task(name=wakeups.RENEW_PROCESS)
def renew_beat() -> None:
    """Records that beat is alive, since it sent this message."""
    with writing() as session:
        heartbeats.renew(session, "beat", "beat", utcnow())


def beat_schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    """Task name -> schedule entry. A message not taken within its period expires: the next one is equal."""
    periods = {
        wakeups.RECONCILE: settings.reconcile_seconds,
        wakeups.RENEW_PROCESS: settings.process_renew_seconds,
        wakeups.RESUME_UPLOADS: settings.process_renew_seconds,
        wakeups.COLLECT: COLLECT_SECONDS,
        wakeups.FORGET_DELIVERIES: COLLECT_SECONDS,
    }
    return {
        task: {"task": task, "schedule": seconds, "options": {"expires": seconds}}
        for task, seconds in periods.items()
    }


@setup_logging.connect
def _skip_celery_logging(**_: object) -> None:
    """A receiver of this signal keeps Celery from configuring logging."""


@worker_init.connect
@beat_init.connect
def _secure_files(**_: object) -> None:
    """Applies also if Celery's own command starts the process. Celery would only log any other exception."""
    try:
        ownership.secure_files()
    except NotPrivate as error:
        sys.exit(f"error: {error}")


@beat_init.connect
def _send_all_once(**_: object) -> None:
    """Sends every task at once, since beat's first turn comes only one period after its start."""
    for task in beat_schedule(get_settings()):
        wakeups.send(task)


@worker_ready.connect
def _start_in_thread_pool(**_: object) -> None:
    settings = get_settings()
    if settings.embedded:
        _start_services(settings.background_threads)


@worker_process_init.connect
def _start_in_fork(**_: object) -> None:
    forget_inherited()
    _start_services(1)


def _start_services(steps_at_once: int) -> None:
    """Starts the step pool, the heartbeat and the webhook sender that run beside a process's tasks."""
    from coordinator.webhooks.tasks import deliverer

    settings = get_settings()
    _services.enter_context(step_pool.running(steps_at_once))
    _services.enter_context(heartbeats.heartbeat("background"))
    _services.enter_context(deliverer.running(settings.webhook_threads, settings.webhook_timeout_seconds))


@worker_shutdown.connect
@worker_process_shutdown.connect
def _stop_services(**_: object) -> None:
    _services.close()


def worker_arguments(settings: Settings) -> list[str]:
    """Command line of the Celery worker: threads on one machine, otherwise forks; no gossip among workers."""
    pool = "threads" if settings.embedded else "prefork"
    return [
        "--quiet", "worker", f"--pool={pool}", f"--concurrency={settings.background_threads}", "--loglevel=WARNING",
        "--without-gossip", "--without-mingle", "--without-heartbeat", f"--hostname=background-{os.getpid()}@%h",
    ]  # fmt: skip


def run_beat() -> None:
    """Runs the scheduler until SIGTERM. Its schedule is in memory, since Celery's schedule file is a pickle."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    celery.conf.beat_schedule = beat_schedule(get_settings())
    Service(app=celery, scheduler_cls=Scheduler).start()
