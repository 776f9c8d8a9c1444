"""Operations on rounds: claims, results, queries, repair and provenance."""

from coordinator.rounds.service.claims import Claim, claim_shard, renew
from coordinator.rounds.service.inputs import StepContext
from coordinator.rounds.service.provenance_builder import provenance, repeatable
from coordinator.rounds.service.queries import (
    adapter_file,
    adapter_files,
    adapter_round,
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
    to_response,
    to_responses,
    visible,
)
from coordinator.rounds.service.repair import ARTIFACT_DAMAGED, give_up, hold_up, restoration_of, resume
from coordinator.rounds.service.results import ALGORITHM_FAILED, count_death, fail, record_shard
from coordinator.rounds.service.sharding import ShardClaim
from coordinator.rounds.service.sharding import due as shards_due
from coordinator.rounds.service.transitions import open_round, withdraw

__all__ = [
    "ALGORITHM_FAILED",
    "ARTIFACT_DAMAGED",
    "Claim",
    "ShardClaim",
    "StepContext",
    "adapter_file",
    "adapter_files",
    "adapter_round",
    "check_may_download",
    "claim_shard",
    "count_closed",
    "count_death",
    "due",
    "fail",
    "give_up",
    "history",
    "hold_up",
    "jobs_of",
    "newest",
    "newest_adapter_number",
    "newest_of",
    "note_download",
    "open_round",
    "open_rounds",
    "provenance",
    "record_shard",
    "release_all",
    "renew",
    "repeatable",
    "restoration_of",
    "resume",
    "rounds_of",
    "shards_due",
    "show",
    "to_response",
    "to_responses",
    "visible",
    "withdraw",
]
