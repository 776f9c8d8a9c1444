"""Ranks of clients: by own setting, by free memory, or from a mix drawn by federation seed and ordinal.

The mixes are those of Bai et al. (NeurIPS 2024) over four kinds of client. Their ranks are 8, 30, 30 in attention and
200 elsewhere, and 200. Here they are shares of the trainable's ranks, so their spread holds for any rank.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from federated.algorithms.flexlora.lora_matrices import Matrix
from federated.contract import ClientFacts
from federated.trainable import MAX_RANK

if TYPE_CHECKING:
    from federated.payloads.payload import Payload

RankMix = Literal["uniform", "heavy-tail-light", "heavy-tail-strong", "normal"]
RankRule = Literal["auto", "full"] | RankMix | int

# Shares of the trainable's rank: in attention, elsewhere.
_KINDS = ((8 / 200, 8 / 200), (30 / 200, 30 / 200), (30 / 200, 1.0), (1.0, 1.0))
_MIXES: Mapping[str, tuple[float, float, float, float]] = {
    "uniform": (0.25, 0.25, 0.25, 0.25),
    "heavy-tail-light": (0.8, 0.2 / 3, 0.2 / 3, 0.2 / 3),
    "heavy-tail-strong": (0.2 / 3, 0.2 / 3, 0.2 / 3, 0.8),
    "normal": (0.125, 0.375, 0.375, 0.125),
}
_ATTENTION = ("attn", "attention", "q_proj", "k_proj", "v_proj", "o_proj", "query", "key", "value")
# For each element of a factor in training: value, gradient and two moments of AdamW in float32.
_BYTES_PER_ELEMENT = 16


def setting_rank(settings: Mapping[str, Any]) -> int | None:
    """The rank that a client registered with, if any. Raises ValueError for other settings and ranks out of range."""
    unknown = sorted(settings.keys() - {"rank"})
    if unknown:
        raise ValueError(f"unknown client setting {unknown[0]!r}: this algorithm takes 'rank'")
    rank = settings.get("rank")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_RANK):
        raise ValueError(f"client setting 'rank' must be an integer in 1 ... {MAX_RANK}, not {rank!r}")
    return rank


def client_ranks(
    rule: RankRule, memory_share: float, seed: int, client: ClientFacts, matrices: Sequence[Matrix]
) -> tuple[int, ...]:
    """A client's rank of each matrix: its own setting, or else by the federation's rule. At least 1.

    At most the matrix's rank in the trainable and the limit of the client's node.
    """
    requested_rank = setting_rank(client.settings)
    if requested_rank is None and isinstance(rule, int):
        requested_rank = rule
    if requested_rank is None and rule == "auto":
        elements = sum(matrix.inputs + matrix.outputs for matrix in matrices)
        requested_rank = noted_rank(client.note) or affordable_rank(
            memory_of(client.capabilities), memory_share, elements
        )
    if requested_rank is not None:
        ranks = [requested_rank for _ in matrices]
    elif rule in _MIXES:
        kind = _draw_kind(_MIXES[str(rule)], seed, client.ordinal)
        ranks = [_share_of(matrix, *_KINDS[kind]) for matrix in matrices]
    else:
        ranks = [matrix.rank for matrix in matrices]
    return allowed_ranks(ranks, client, matrices)


def allowed_ranks(ranks: Sequence[int], client: ClientFacts, matrices: Sequence[Matrix]) -> tuple[int, ...]:
    """These ranks, cut to each matrix's own and to the limit of the client's node."""
    limit = client.capabilities.get("max_rank") or MAX_RANK
    return tuple(min(rank, matrix.rank, limit) for rank, matrix in zip(ranks, matrices, strict=True))


def memory_of(capabilities: Mapping[str, Any]) -> int | None:
    """Bytes that a worker may use: those that were free when it started, else all it has. None if unknown."""
    free_bytes: int | None = capabilities.get("free_memory_bytes")
    return capabilities.get("memory_bytes") if free_bytes is None else free_bytes


def affordable_rank(memory_bytes: int | None, share: float, elements_per_rank: int) -> int | None:
    """The rank whose factors take `share` of the memory in training, or None if the memory is unknown."""
    if memory_bytes is None:
        return None
    return max(1, int(memory_bytes * share / (elements_per_rank * _BYTES_PER_ELEMENT)))


def noted_rank(note: "Payload | None") -> int | None:
    """The rank in a client's note, if it has one (see `rank_memory`)."""
    return None if note is None else int(note.facts["rank"])


def _draw_kind(mix: tuple[float, ...], seed: int, ordinal: int) -> int:
    """Index of the client's kind, a pure function of federation seed and ordinal."""
    digest = hashlib.sha256(f"{seed}/rank/{ordinal}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    return sum(point >= sum(mix[: kind + 1]) for kind in range(len(mix) - 1))


def _share_of(matrix: Matrix, in_attention: float, elsewhere: float) -> int:
    is_attention = any(part in matrix.module for part in _ATTENTION)
    return max(1, round((in_attention if is_attention else elsewhere) * matrix.rank))
