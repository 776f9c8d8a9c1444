"""The table `roles.txt`: who may do what.

A row names an operation, the state of the federation that it is tried on, and for each role what it is answered:
`ok`, or the status of the refusal.
"""

from pathlib import Path

from tests.coordinator.contract.asking import Operation
from tests.coordinator.contract.world import ROLES

LINES = [line.split() for line in Path(__file__).with_name("roles.txt").read_text(encoding="utf-8").splitlines()]
TRIED_ON = {line[0]: line[1] for line in LINES[1:]}
ANSWERED = {line[0]: dict(zip(ROLES, line[2:], strict=True)) for line in LINES[1:]}


def role_of(operation: Operation) -> str:
    """Who may do this; nobody in particular, if all may."""
    if not operation.said["security"]:
        return "anonymous"
    return next(role for role in ("owner", "worker", *ROLES) if ANSWERED[operation.id][role] == "ok")
