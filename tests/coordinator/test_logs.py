"""The log of a process: one JSON object a line, and never a secret."""

import json
import subprocess
import sys

PROGRAM = """
import logging
import structlog
from coordinator import logs
from coordinator.credentials import new_secret

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
