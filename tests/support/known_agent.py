"""A worker agent of this process that a coordinator is to know: enrolled, looked at by the doctor, and answered."""

from worker_agent.coordinator_api.client import CoordinatorClient
from worker_agent.coordinator_api.connection import open_http
from worker_agent.coordinator_api.enrollment import enroll
from worker_agent.coordinator_api.identity import load_identity
from worker_agent.doctor import examine
from worker_agent.settings import AgentSettings

LAST_STEP = "coordinator knows this worker"


def check_agent(settings: AgentSettings, token: str) -> None:
    """Spends the token at the coordinator of these settings; fails unless all that an agent asks first is well."""
    worker_id = enroll(settings, str(settings.url), token).worker_id
    for finding in examine(settings):
        assert finding.well, finding
        if finding.step == LAST_STEP:  # what follows is not about the coordinator, and loads torch
            break
    with open_http(settings, str(settings.url)) as http:
        assert CoordinatorClient(http, load_identity(settings.folder)).who_am_i().id == worker_id
