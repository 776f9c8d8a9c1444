"""Independent pieces of work on several cores, each piece on one of them.

Threads meet once at the end and not after each operation, so a busy machine slows them little; and as each piece is
computed by one thread, the bits do not depend on how many there are.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def one_core_each(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in which torch computes alone: they share the processors among themselves."""
    try:
        with ThreadPoolExecutor(threads, "cores", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        # A thread sets its own number and that of threads to come; this one's own was left as it is.
        torch.set_num_threads(torch.get_num_threads())


def on_all_cores(pieces: Sequence[Callable[[], None]]) -> None:
    """Call every piece once, in inference mode, on as many threads as torch may use. Raises what a piece raises."""
    threads = min(torch.get_num_threads(), len(pieces))
    if threads <= 1:
        in_turn(pieces)
        return
    with one_core_each(threads) as pool:
        # Dealt one by one, because neighbours are of one size.
        list(pool.map(in_turn, [pieces[first::threads] for first in range(threads)]))


def in_turn(pieces: Sequence[Callable[[], None]]) -> None:
    """Call every piece once, in inference mode, in this thread: torch shares each operation among the cores."""
    with torch.inference_mode():
        for piece in pieces:
            piece()
