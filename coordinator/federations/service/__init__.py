"""Federation service: the owner's commands, the progress of running federations, and read access."""

from coordinator.federations.service.commands import cancel, change, clone, create, delete, pause, resume, start
from coordinator.federations.service.progress import advance, expire, overdue, repair_or_fail
from coordinator.federations.service.queries import events_after, statement_for, to_response, visible

__all__ = [
    "advance",
    "cancel",
    "change",
    "clone",
    "create",
    "delete",
    "events_after",
    "expire",
    "overdue",
    "pause",
    "repair_or_fail",
    "resume",
    "start",
    "statement_for",
    "to_response",
    "visible",
]
