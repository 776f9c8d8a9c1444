"""Random input of every kind for so many minutes: a JSON line for each finding, and a summary.

As every role over the OpenAPI document, as a hostile worker, and as a hostile coordinator, one after the other. What
it finds: any 5xx and any answer that the document does not know, any canary, any growth of a process, any federation
or agent that stands still. A seed's requests are the same in each run, as far as the time allows. The minutes are
those of the input; each part needs some seconds more for what it is held against.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from federated.private_files import keep_private
from tests.fuzz import coordinator, roles, worker
from tests.fuzz.record import Record, one_line
from tests.fuzz.turns import Turn
from tests.support.places import VARIABLE

PARTS = {"roles": roles.fuzz, "worker": worker.fuzz, "coordinator": coordinator.fuzz}


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing of it may be left running
    os.environ[VARIABLE] = arguments.on
    keep_private()
    seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    folder = Path(tempfile.mkdtemp(prefix="fedloom-fuzz-"))
    record = Record(seed, say)
    began = time.monotonic()
    say({"seed": seed, "folder": str(folder)})
    names = [arguments.as_] if arguments.as_ else list(PARTS)
    try:
        for name in names:
            PARTS[name](Turn(name, seed, 60 * arguments.minutes / len(names), record, folder / name))
    finally:
        say({"summary": record.summary((time.monotonic() - began) / 60)})
    if record.findings:
        return 1
    shutil.rmtree(folder)
    return 0


def say(told: dict[str, Any]) -> None:
    """One line."""
    print(one_line(told), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="how long in all")
    parser.add_argument("--seed", type=int, help="of all that is drawn; without it, another in each run")
    parser.add_argument("--as", dest="as_", choices=tuple(PARTS), help="one part alone; without it, all in turn")
    parser.add_argument("--on", choices=("sqlite", "postgresql"), default="sqlite")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
