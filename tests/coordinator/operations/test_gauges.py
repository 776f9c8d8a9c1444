"""Installation metrics of /metrics, over HTTP, compared with the API."""

import hashlib
import re
from datetime import timedelta

import pytest

from coordinator.artifacts import service as artifacts
from coordinator.db.sessions import utcnow
from tests.support.federation_rig import FederationRig
from tests.support.service import Service, forget_settings, upload


def told(service: Service) -> dict[str, float]:
    """Series of the installation -> value."""
    text = service.anonymous.get("/metrics").raise_for_status().text
    found = re.findall(r"^fedloom_(?!http)(\S+) (\S+)$", text, flags=re.MULTILINE)
    return {name: float(value) for name, value in found}


class TestGauges:
    def test_of_an_empty_installation_are_zero(self, service: Service) -> None:
        series = told(service)
        assert series.pop("database_up") == 1
        assert {name for name in series if name.startswith("rounds")} == {
            f'rounds{{state="{state}"}}' for state in ("waiting", "collecting", "aggregating", "evaluating")
        }
        assert set(series.values()) == {0}

    def test_follow_a_round(self, rig: FederationRig) -> None:
        rig.running(rounds=1)
        series = told(rig.service)
        assert series['federations{state="running"}'] == 1
        assert series['rounds{state="collecting"}'] == 1
        assert series['jobs{state="offered"}'] == 2
        assert series["workers_alive"] == 2
        assert series["oldest_open_round_seconds"] > 0
        assert series["oldest_offered_job_seconds"] > 0
        before = series["artifact_bytes"]
        rig.play(1)
        series = told(rig.service)
        assert series['federations{state="running"}'] == series['rounds{state="collecting"}'] == 0
        assert series["oldest_open_round_seconds"] == series["oldest_offered_job_seconds"] == 0
        assert series["artifact_bytes"] > before > 0

    def test_count_the_bytes_that_were_freed(self, service: Service) -> None:
        owner = service.new_organization("Bank").owner
        for content in (b"a" * 100, b"b" * 23):
            upload(owner, content, "sha256:" + hashlib.sha256(content).hexdigest())
            for days in (10, 20, 30):  # its uploader's hold ends, and then its day begins
                artifacts.collect(utcnow() + timedelta(days=days))
        assert told(service)["artifact_freed_bytes_total"] == 123

    def test_say_that_the_database_is_away_and_leave_the_counters(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        service.anonymous.get("/version").raise_for_status()
        monkeypatch.setenv("FEDLOOM_DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:1/nowhere")
        forget_settings()
        assert told(service) == {"database_up": 0}
        assert "fedloom_http_requests_total" in service.anonymous.get("/metrics").text
