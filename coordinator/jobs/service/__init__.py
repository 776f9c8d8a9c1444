"""What happens to jobs: leased and submitted by workers, offered and judged by rounds and federations."""

from coordinator.jobs.service.leasing import (
    decline,
    expire_leases,
    fail,
    hand_back,
    has_something_for,
    lease,
    renew,
)
from coordinator.jobs.service.offering import (
    accept,
    ask_again,
    lose,
    newest_offer,
    of_round,
    offer,
    offers_after,
    reject,
    show,
    views,
    withdraw_gone,
    withdraw_open,
)
from coordinator.jobs.service.submitting import submit

__all__ = [
    "accept",
    "ask_again",
    "decline",
    "expire_leases",
    "fail",
    "hand_back",
    "has_something_for",
    "lease",
    "lose",
    "newest_offer",
    "of_round",
    "offer",
    "offers_after",
    "reject",
    "renew",
    "show",
    "submit",
    "views",
    "withdraw_gone",
    "withdraw_open",
]
