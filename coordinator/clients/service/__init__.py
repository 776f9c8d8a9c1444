"""Invitations and clients: who was asked, who takes part, and with which data set."""

from coordinator.clients.service.access import concerned, may_see, visible_client, visible_federation
from coordinator.clients.service.invitations import (
    accept,
    admit_owner,
    answers,
    ask_again,
    decline,
    invitations_of,
    invite,
    leave,
    my_invitations,
)
from coordinator.clients.service.registrations import (
    alive_ordinals,
    by_ordinals,
    clients_of,
    describe_done,
    leave_client,
    ready_clients,
    register,
    restore,
    take_out,
)

__all__ = [
    "accept",
    "admit_owner",
    "alive_ordinals",
    "answers",
    "ask_again",
    "by_ordinals",
    "clients_of",
    "concerned",
    "decline",
    "describe_done",
    "invitations_of",
    "invite",
    "leave",
    "leave_client",
    "may_see",
    "my_invitations",
    "ready_clients",
    "register",
    "restore",
    "take_out",
    "visible_client",
    "visible_federation",
]
