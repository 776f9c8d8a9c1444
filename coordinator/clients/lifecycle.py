"""Life cycles of invitations and clients, and the checks before a client is registered.

Transitions that are not in a table are refused.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

from coordinator.errors import Conflict, FieldError, Unprocessable
from federated import registry
from federated.protocol import Capabilities

InvitationState = Literal["invited", "accepted", "declined", "left", "removed"]
InvitationEvent = Literal["invite", "accept", "decline", "leave", "ask_again", "remove"]
ClientState = Literal["registered", "ready", "out", "left", "expelled"]
ClientEvent = Literal["register", "describe", "take_out", "restore", "leave", "expel", "readmit"]

INVITATION_MOVES: Final[Mapping[tuple[InvitationState, InvitationEvent], InvitationState]] = {
    ("invited", "accept"): "accepted",
    ("invited", "decline"): "declined",
    ("accepted", "leave"): "left",
    ("accepted", "ask_again"): "invited",
    ("declined", "invite"): "invited",
    ("left", "invite"): "invited",
    ("invited", "remove"): "removed",
    ("accepted", "remove"): "removed",
    ("removed", "invite"): "invited",
}
CLIENT_MOVES: Final[Mapping[tuple[ClientState, ClientEvent], ClientState]] = {
    ("registered", "describe"): "ready",
    ("registered", "take_out"): "out",
    ("ready", "take_out"): "out",
    ("out", "restore"): "registered",
    ("registered", "leave"): "left",
    ("ready", "leave"): "left",
    ("out", "leave"): "left",
    ("left", "register"): "registered",
    ("registered", "expel"): "expelled",
    ("ready", "expel"): "expelled",
    ("out", "expel"): "expelled",
    ("expelled", "readmit"): "registered",
}
INVITATION_STATES: Final = get_args(InvitationState)
INVITATION_EVENTS: Final = get_args(InvitationEvent)
CLIENT_STATES: Final = get_args(ClientState)
CLIENT_EVENTS: Final = get_args(ClientEvent)
TAKES_PART: Final = ("registered", "ready")
MEMBER: Final = ("invited", "accepted")
CURRENT_STATES: Final = ("registered", "ready", "out")
"""States of a client that has not left."""
DEFINITION_CHANGED: Final = "definition_changed"
"""Reason of renewed invitations and of the clients that left with them."""
LIVE: Final = ("draft", "running", "paused")


def move_invitation(state: str, event: InvitationEvent) -> InvitationState:
    """The state after `event`. Raises Conflict."""
    for (before, name), after in INVITATION_MOVES.items():
        if (before, name) == (state, event):
            return after
    raise Conflict("illegal_transition", f"An invitation that is {state} has no move {event}.")


def move_client(state: str, event: ClientEvent) -> ClientState:
    """The state after `event`. Raises Conflict."""
    for (before, name), after in CLIENT_MOVES.items():
        if (before, name) == (state, event):
            return after
    raise Conflict("illegal_transition", f"A client that is {state} has no move {event}.")


def check_live(federation_state: str) -> None:
    """Raises Conflict if the federation has ended."""
    if federation_state not in LIVE:
        raise Conflict("federation_ended", f"The federation is {federation_state}: its clients can no longer change.")


def check_dataset(capabilities: Capabilities, dataset: str, definition: Mapping[str, Any]) -> None:
    """Raises Unprocessable unless the worker offers the data set for the federation's task."""
    datasets = {facts.name: facts for facts in capabilities.datasets}
    if dataset not in datasets:
        names = ", ".join(sorted(datasets)) or "none"
        detail = f"the worker offers no data set {dataset!r}; it offers: {names}"
        raise invalid_field("dataset_unknown", "/dataset", detail)
    task, federation_task = datasets[dataset].task, definition["task"]["task"]
    if task is not None and task != federation_task:
        raise invalid_field(
            "dataset_task",
            "/dataset",
            f"data set {dataset!r} is for {task}, the federation trains {federation_task}",
        )


def check_settings(definition: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises Unprocessable unless the federation's algorithm accepts these client settings."""
    config = registry.make_config(definition["algorithm"], definition["config"])
    try:
        config.check_settings(settings)
    except ValueError as error:
        raise invalid_field("settings_refused", "/settings", str(error)) from None


def invalid_field(code: str, pointer: str, detail: str) -> Unprocessable:
    """The error for one invalid field."""
    return Unprocessable(code, detail, errors=[FieldError(pointer=pointer, detail=detail)])
