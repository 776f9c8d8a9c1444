"""Composition root of the background process: which tasks there are, and what beat wakes."""

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
_alive = ExitStack()


def load_tasks() -> None:
    """Registers all tasks. Not done by importing this module: beat sends names, and needs no torch."""
    from coordinator.artifacts import tasks as artifact_tasks  # noqa: F401
    from coordinator.federations import tasks as federation_tasks  # noqa: F401
    from coordinator.rounds import tasks as round_tasks  # noqa: F401
    from coordinator.webhooks import tasks as webhook_tasks  # noqa: F401


@celery.task(name=wakeups.RENEW_PROCESS)
def renew_beat() -> None:
    """Beat sent this and a background process took it: both are alive."""
    with writing() as session:
        heartbeats.renew(session, "beat", "beat", utcnow())


def beat_schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    """Task name -> its entry. A message not taken within one period is dropped: the next one says the same."""
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
def _keep_our_logging(**_: object) -> None:
    """A receiver keeps Celery from setting up a log of its own."""


@worker_init.connect
@beat_init.connect
def _own_data(**_: object) -> None:
    """Also where Celery's own command starts the process, which would take any other error for a receiver's own."""
    try:
        ownership.secure_files()
    except NotPrivate as error:
        sys.exit(f"error: {error}")


@beat_init.connect
def _send_all_once(**_: object) -> None:
    """Beat's first turn comes one period after its start; what is due is due now."""
    for task in beat_schedule(get_settings()):
        wakeups.send(task)


@worker_ready.connect
def _begin_beside_threads(**_: object) -> None:
    settings = get_settings()
    if settings.embedded:
        _begin(settings.background_threads)


@worker_process_init.connect
def _begin_in_forks(**_: object) -> None:
    forget_inherited()
    _begin(1)


def _begin(steps_at_once: int) -> None:
    """Starts what runs beside the tasks of a process."""
    from coordinator.webhooks.tasks import deliverer

    settings = get_settings()
    _alive.enter_context(step_pool.running(steps_at_once))
    _alive.enter_context(heartbeats.heartbeat("background"))
    _alive.enter_context(deliverer.running(settings.webhook_threads, settings.webhook_timeout_seconds))


@worker_shutdown.connect
@worker_process_shutdown.connect
def _say_goodbye(**_: object) -> None:
    _alive.close()


def worker_arguments(settings: Settings) -> list[str]:
    """Command line of the Celery worker: threads on one machine, forks beyond, and no talk among workers."""
    pool = "threads" if settings.embedded else "prefork"
    return [
        "--quiet", "worker", f"--pool={pool}", f"--concurrency={settings.background_threads}", "--loglevel=WARNING",
        "--without-gossip", "--without-mingle", "--without-heartbeat", f"--hostname=background-{os.getpid()}@%h",
    ]  # fmt: skip


def run_beat() -> None:
    """Runs the clock until SIGTERM. Its schedule lies in memory: Celery's own file for it is a pickle."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    celery.conf.beat_schedule = beat_schedule(get_settings())
    Service(app=celery, scheduler_cls=Scheduler).start()
