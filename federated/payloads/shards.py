"""Cuts an aggregation into shards: tensors that an algorithm can aggregate without the others.

What belongs together is told by the names alone, so whoever cuts the same state finds the same shards.
"""

import math
import re
from collections.abc import Collection
from typing import Literal

from federated.payloads.payload import Payload

ShardBy = Literal["tensor", "layer", "none"]

_LAYER = re.compile(r"(?:.*?\.)?\d+(?=\.)")


def cut(state: Payload, by: ShardBy, most_bytes: int) -> tuple[tuple[str, ...], ...]:
    """The groups of each shard, in sorted order; a shard has at most so many bytes of the state, or one group.

    One shard, or none of an empty state, where the algorithm does not shard.
    """
    sizes: dict[str, int] = {}
    for name in state:
        group = _group_of(name, by)
        sizes[group] = sizes.get(group, 0) + math.prod(state.shape(name)) * state.lazy(name).dtype.itemsize
    shards: list[list[str]] = []
    filled = 0
    for group, size in sorted(sizes.items()):
        if not shards or filled + size > most_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(group)
        filled += size
    return tuple(tuple(shard) for shard in shards)


def part(payload: Payload, groups: Collection[str], by: ShardBy) -> Payload:
    """What of a state or an update belongs to these groups, with all facts; no tensor is opened."""
    names = [name for name in payload if _group_of(name, by) in groups]
    return Payload({name: payload.lazy(name) for name in names}, payload.facts)


def _group_of(name: str, by: ShardBy) -> str:
    """A tensor with what is stored beside it (`name/…`); a layer by its number; what has none is one group."""
    tensor = name.partition("/")[0]
    if by == "tensor":
        return tensor
    layer = _LAYER.match(tensor) if by == "layer" else None
    return layer.group() if layer else ""
