"""The real child of an executor, extended with the algorithms of the tests."""

from multiprocessing.connection import Connection
from typing import Any

import tests.support.algorithms.breaking.exceptions  # noqa: F401  (its libraries take seconds: loaded before the jobs)
from tests.support.algorithms import installed
from worker_agent.settings import AgentSettings
from worker_agent.training import child


def serve(pipe: "Connection[Any, Any]", settings: AgentSettings) -> None:
    with installed():
        child.serve(pipe, settings)
