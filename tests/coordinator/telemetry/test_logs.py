"""Logs of a process: one JSON object per line, without secrets."""

import json
import subprocess
import sys

import structlog

from tests.support.logged import logged

PROGRAM = """
import logging
import structlog
from coordinator.telemetry import logs
from coordinator.auth.credentials import new_secret

logs.configure("json", "tests")
text, _ = new_secret("flk_", "key_0123456789abcdef")
structlog.get_logger("ours").warning("given", text=f"it was {text}.", key=text, count=3)
logging.getLogger("theirs").warning("got %s", text)
try:
    raise ValueError(text)
except ValueError:
    logging.getLogger("theirs").exception("failed")
print(text)
"""


def test_every_line_is_json_and_no_secret_stands_in_one() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    secret = done.stdout.strip().rpartition("_")[2]
    ours, theirs, failed = (json.loads(line) for line in done.stderr.splitlines())
    assert (ours["event"], ours["text"], ours["key"], ours["count"]) == ("given", "it was ….", "…", 3)
    assert (ours["process"], ours["level"], ours["logger"]) == ("tests", "warning", "ours")
    assert theirs["event"] == "got …"
    assert "ValueError" in failed["exception"]
    assert secret not in done.stderr


UNREAD = """
import os
import structlog
from coordinator.telemetry import logs

logs.configure("json", "tests")
log = structlog.get_logger("ours")
log.warning("read")
os.close(2)
log.warning("not written")
print("went on")
"""


def test_a_log_that_cannot_be_written_stops_nobody() -> None:
    done = subprocess.run([sys.executable, "-c", UNREAD], capture_output=True, text=True, check=False, timeout=60)
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["read"]
    assert done.stdout == "went on\n"


def test_a_logger_that_is_in_use_writes_where_the_log_goes_now() -> None:
    log = structlog.get_logger("ours")
    log.warning("before")
    with logged() as lines:
        log.warning("now")
        log.debug("too small a matter")
    log.warning("after")
    assert [(line["event"], line["logger"]) for line in lines()] == [("now", "ours")]
