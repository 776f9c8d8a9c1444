"""What happens to a federation: what its owner asks for, what its life cycle does, and how it is shown."""

from coordinator.federations.service.commands import cancel, change, clone, create, delete, pause, resume, start
from coordinator.federations.service.progress import advance, expire, hold_up, overdue
from coordinator.federations.service.queries import answer, events_after, statement_for, visible

__all__ = [
    "advance",
    "answer",
    "cancel",
    "change",
    "clone",
    "create",
    "delete",
    "events_after",
    "expire",
    "hold_up",
    "overdue",
    "pause",
    "resume",
    "start",
    "statement_for",
    "visible",
]
