"""Client memory between rounds, never sent: difficulty of the examples, rows that are trained, private factors.

A payload of `difficulty` (examples,), `NAME/rows` (rows,) bool and `NAME/private`. Its facts are the seed of the
federation and the layers that were shared when it was written. Parts that do not fit the session are computed again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from federated.payloads.payload import Payload
from federated.session import TrainingSession

_DIFFICULTY = "difficulty"
_ROWS = "/rows"
_PRIVATE = "/private"


@dataclass(frozen=True, slots=True)
class ClientMemory:
    """Contents of a memory. `rows` and `private` are by name of the factor, both empty if the memory does not fit."""

    difficulty: Tensor | None = None
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    private: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        memory: Payload | None,
        session: TrainingSession,
        private: Sequence[str],
        shared_layers: Sequence[int] | None,
    ) -> "ClientMemory":
        """The parts of a memory that fit this session, while the factors `private` do not travel."""
        if memory is None or memory.facts.get("federation_seed") != session.federation_seed:
            return cls()
        difficulty = None
        if _DIFFICULTY in memory and memory.shape(_DIFFICULTY) == (session.examples,):
            difficulty = memory[_DIFFICULTY]
        shapes = {name: tuple(session.trainables[name].shape) for name in private}
        layers = None if shared_layers is None else list(shared_layers)
        fits = memory.facts.get("layers") == layers and all(
            name + suffix in memory and memory.shape(name + suffix) == shape_in_memory
            for name, shape in shapes.items()
            for suffix, shape_in_memory in ((_ROWS, shape[:1]), (_PRIVATE, shape))
        )
        if not fits:
            return cls(difficulty)
        rows = {name: memory[name + _ROWS] for name in private}
        return cls(difficulty, rows, {name: memory[name + _PRIVATE] for name in private})

    def payload(self, session: TrainingSession, shared_layers: Sequence[int] | None) -> Payload:
        """The payload to store. `shared_layers` is None before the layers are chosen."""
        tensors = {} if self.difficulty is None else {_DIFFICULTY: self.difficulty}
        tensors |= {name + _ROWS: rows for name, rows in self.rows.items()}
        tensors |= {name + _PRIVATE: values for name, values in self.private.items()}
        facts = {"federation_seed": session.federation_seed}
        return Payload(tensors, facts if shared_layers is None else {**facts, "layers": list(shared_layers)})
