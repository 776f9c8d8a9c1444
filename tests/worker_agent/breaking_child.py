"""The real child of an executor, which knows the algorithms of the tests as well."""

from multiprocessing.connection import Connection
from typing import Any

from tests.support.algorithms import installed
from worker_agent.settings import AgentSettings
from worker_agent.training import child


def serve(pipe: "Connection[Any, Any]", settings: AgentSettings) -> None:
    with installed():
        child.serve(pipe, settings)
