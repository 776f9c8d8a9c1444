"""Parallel execution of independent pieces of work, each on one core.

Threads synchronize once at the end and not after each operation, so a busy machine slows them little. One thread
computes each piece, so the bits do not depend on the number of threads.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def one_core_each(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A thread pool in whose threads torch uses one core each."""
    try:
        with ThreadPoolExecutor(threads, "cores", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        # A thread sets its own number and the default of new threads: restore the default.
        torch.set_num_threads(torch.get_num_threads())


def on_all_cores(pieces: Sequence[Callable[[], None]]) -> None:
    """Call every piece once, in inference mode, on as many threads as torch may use. Raises what a piece raises."""
    threads = min(torch.get_num_threads(), len(pieces))
    if threads <= 1:
        in_turn(pieces)
        return
    with one_core_each(threads) as pool:
        # Round robin, because neighbors have similar sizes.
        list(pool.map(in_turn, [pieces[first::threads] for first in range(threads)]))


def in_turn(pieces: Sequence[Callable[[], None]]) -> None:
    """Call every piece once, in inference mode, in this thread. Torch distributes each operation over the cores."""
    with torch.inference_mode():
        for piece in pieces:
            piece()
