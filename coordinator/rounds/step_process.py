"""Process that computes steps, one after another, for the background process that started it.

    python -m coordinator.rounds.step_process FD

Requests and responses are messages over the socket FD. The process ends with its parent. Signals that are meant for
the parent do not end it.
"""

import gc
import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection

from coordinator.settings import get_settings
from coordinator.telemetry import logs
from federated.private_files import keep_private


def main() -> None:
    """Serve until the other end of the socket is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection: Connection[bytes, bytes] = Connection(int(sys.argv[1]))
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, requests), name="orders", daemon=True).start()
    keep_private()
    logs.configure(get_settings().log_format, "step")

    from coordinator.rounds.computation import run_step

    gc.collect()
    gc.freeze()
    while True:
        connection.send_bytes(run_step(requests.get()))


def _listen(connection: "Connection[bytes, bytes]", requests: "queue.SimpleQueue[bytes]") -> None:
    """Queues requests, and ends the process when the parent is gone."""
    try:
        while True:
            requests.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    main()
