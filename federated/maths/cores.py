"""Independent pieces of work on all cores that torch may use, each piece on one of them.

Threads meet once at the end and not after each operation, so a busy machine slows them little; and as each piece is
computed by one thread, the bits do not depend on how many there are.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch


def on_all_cores(pieces: Sequence[Callable[[], None]]) -> None:
    """Call every piece once, in inference mode. Raises what a piece raises."""
    threads = min(torch.get_num_threads(), len(pieces))
    if threads <= 1:
        in_turn(pieces)
        return
    try:
        with ThreadPoolExecutor(threads, "cores", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            # Dealt one by one, because neighbours are of one size.
            list(pool.map(in_turn, [pieces[first::threads] for first in range(threads)]))
    finally:
        # A thread sets its own number and that of threads to come; this one's own was left as it is.
        torch.set_num_threads(torch.get_num_threads())


def in_turn(pieces: Sequence[Callable[[], None]]) -> None:
    """Call every piece once, in inference mode, in this thread: torch shares each operation among the cores."""
    with torch.inference_mode():
        for piece in pieces:
            piece()
