"""Secrets in the log of an agent: masked in every field, on a terminal and as JSON."""

import json
import subprocess
import sys

import pytest

TOKEN = "fle_" + "0123456789abcdefghijKLMNOP"
JWT = "eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJ3b3JrZXIifQ.c2lnbmF0dXJlLW9mLWE"
PROGRAM = f"""
import structlog
from worker_agent.display import configure_logs

configure_logs(terminal=TERMINAL)
log = structlog.get_logger("agent")
log.warning("request", reason="sent {TOKEN} and Bearer {JWT}.", token="plain", headers={{"authorization": "plain"}})
try:
    row = "text of a row"
    raise ValueError("{TOKEN}")
except ValueError:
    log.exception("broke")
"""


def log_of(*, terminal: bool) -> str:
    program = PROGRAM.replace("TERMINAL", str(terminal))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return done.stderr


@pytest.mark.parametrize("terminal", [False, True], ids=["json", "terminal"])
def test_no_secret_stands_in_a_line(terminal: bool) -> None:
    lines = log_of(terminal=terminal)
    assert "request" in lines
    assert "ValueError" in lines
    assert not any(secret in lines for secret in (TOKEN, JWT, "plain"))


def test_the_rest_of_a_line_stays_as_it_is() -> None:
    first, second = map(json.loads, log_of(terminal=False).splitlines())
    assert first["reason"] == "sent … and Bearer …."
    assert (first["token"], first["headers"]) == ("…", {"authorization": "…"})
    assert set(first) == {"event", "reason", "token", "headers", "level", "timestamp"}
    (trace,) = second["exception"]
    assert (trace["exc_type"], trace["exc_value"]) == ("ValueError", "…")
    assert trace["frames"]
    assert "text of a row" not in json.dumps(trace)
