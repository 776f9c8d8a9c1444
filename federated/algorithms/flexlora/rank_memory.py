"""Notes of clients' ranks under `rank: auto`: the rank of the first update that counted.

Free memory changes with every start of a worker. The note keeps the client's rank.
"""

from collections.abc import Mapping, Sequence

from federated.algorithms.flexlora.lora_matrices import Matrix
from federated.contract import ClientUpdate
from federated.payloads.payload import Payload


def rank_notes(updates: Sequence[ClientUpdate], matrices: Sequence[Matrix]) -> dict[int, Payload]:
    """By ordinal, a note for each client that has none. Empty without matrices (a shard of heads)."""
    return {
        update.ordinal: Payload({}, {"rank": max(update.payload.shape(matrix.a)[0] for matrix in matrices)})
        for update in updates
        if update.note is None and matrices
    }


def join_notes(parts: Sequence[Mapping[int, Payload]]) -> dict[int, Payload]:
    """The notes of an aggregation from those of its shards: the highest rank of each client."""
    notes: dict[int, Payload] = {}
    for part in parts:
        for ordinal, note in part.items():
            if ordinal not in notes or note.facts["rank"] > notes[ordinal].facts["rank"]:
                notes[ordinal] = note
    return notes
