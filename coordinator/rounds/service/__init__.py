"""What happens to a round. `tasks` asks it what to do, lets the conductor do it, and hands the result back."""

from coordinator.rounds.service.claims import Claimed, claim, claim_shard, renew
from coordinator.rounds.service.provenance_builder import provenance, repeatable
from coordinator.rounds.service.queries import (
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
    newest_of,
    note_download,
    open_rounds,
    release_all,
    rounds_of,
    show,
    visible,
)
from coordinator.rounds.service.repair import ARTIFACT_DAMAGED, hold_up, lost, making, mended
from coordinator.rounds.service.results import ALGORITHM_FAILED, count_death, fail, record, record_shard
from coordinator.rounds.service.sharding import ClaimedShard
from coordinator.rounds.service.sharding import due as shards_due
from coordinator.rounds.service.transitions import open_round, withdraw

__all__ = [
    "ALGORITHM_FAILED",
    "ARTIFACT_DAMAGED",
    "Claimed",
    "ClaimedShard",
    "adapter_file",
    "adapter_files",
    "adapter_round",
    "answer",
    "answers",
    "check_may_download",
    "claim",
    "claim_shard",
    "count_closed",
    "count_death",
    "due",
    "fail",
    "history",
    "hold_up",
    "jobs_of",
    "lost",
    "making",
    "mended",
    "newest",
    "newest_adapter_number",
    "newest_of",
    "note_download",
    "open_round",
    "open_rounds",
    "provenance",
    "record",
    "record_shard",
    "release_all",
    "renew",
    "repeatable",
    "rounds_of",
    "shards_due",
    "show",
    "visible",
    "withdraw",
]
