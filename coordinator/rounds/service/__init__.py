"""What happens to a round. `tasks` asks it what to do, lets the conductor do it, and hands the result back."""

from coordinator.rounds.service.bookkeeping import open_round, withdraw
from coordinator.rounds.service.claims import Claimed, claim, renew
from coordinator.rounds.service.lineage import provenance, repeatable
from coordinator.rounds.service.reading import (
    adapter_file,
    adapter_files,
    adapter_round,
    answer,
    answers,
    check_may_download,
    count_closed,
    due,
    history,
    jobs_of,
    newest,
    newest_adapter_number,
    open_rounds,
    release_all,
    rounds_of,
    show,
    visible,
)
from coordinator.rounds.service.recording import fail, record
from coordinator.rounds.service.snapshots import next_step

__all__ = [
    "Claimed",
    "adapter_file",
    "adapter_files",
    "adapter_round",
    "answer",
    "answers",
    "check_may_download",
    "claim",
    "count_closed",
    "due",
    "fail",
    "history",
    "jobs_of",
    "newest",
    "newest_adapter_number",
    "next_step",
    "open_round",
    "open_rounds",
    "provenance",
    "record",
    "release_all",
    "renew",
    "repeatable",
    "rounds_of",
    "show",
    "visible",
    "withdraw",
]
