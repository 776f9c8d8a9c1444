"""Restoration of a session after training that must not last, such as warm-ups and measurements."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from federated.session import TrainingSession


@contextmanager
def temporary_changes(session: TrainingSession) -> Iterator[None]:
    """Restore the trainables, the global random generators and `session.used` after the block.

    Which trainables require a gradient is not restored.
    """
    used = frozenset(session.used)
    values = {name: parameter.detach().clone() for name, parameter in session.trainables.items()}
    with torch.random.fork_rng([session.device] if session.device.type == "cuda" else []):
        yield
    for name, value in values.items():
        with torch.no_grad():
            session.trainables[name].copy_(value)
        session.trainables[name].grad = None
    session.used.intersection_update(used)
