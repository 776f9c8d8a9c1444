"""Shards of an aggregation: groups of tensors that an algorithm can aggregate independently.

The names alone determine the groups, so every process derives the same shards from the same state.
"""

import math
import re
from collections.abc import Collection
from typing import Literal

from federated.payloads.payload import Payload

ShardBy = Literal["tensor", "layer", "none"]

_LAYER = re.compile(r"(?:.*?\.)?\d+(?=\.)")


def cut(state: Payload, by: ShardBy, most_bytes: int) -> tuple[tuple[str, ...], ...]:
    """The groups of each shard, in sorted order. A shard has at most `most_bytes` of the state, or a single group.

    For an algorithm without shards the result is one shard, or none for an empty state.
    """
    sizes: dict[str, int] = {}
    for name in state:
        group = _group_of(name, by)
        sizes[group] = sizes.get(group, 0) + math.prod(state.shape(name)) * state.lazy(name).dtype.itemsize
    shards: list[list[str]] = []
    shard_bytes = 0
    for group, size in sorted(sizes.items()):
        if not shards or shard_bytes + size > most_bytes:
            shards.append([])
            shard_bytes = 0
        shards[-1].append(group)
        shard_bytes += size
    return tuple(tuple(shard) for shard in shards)


def part(payload: Payload, groups: Collection[str], by: ShardBy) -> Payload:
    """The tensors of these groups in a state or update, with all facts. Opens no tensor."""
    names = [name for name in payload if _group_of(name, by) in groups]
    return Payload({name: payload.lazy(name) for name in names}, payload.facts)


def _group_of(name: str, by: ShardBy) -> str:
    """The group of a tensor: its name without suffix (`name/…`) or its layer. All without a layer are one group."""
    tensor = name.partition("/")[0]
    if by == "tensor":
        return tensor
    layer = _LAYER.match(tensor) if by == "layer" else None
    return layer.group() if layer else ""
