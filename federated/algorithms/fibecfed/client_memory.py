"""What a client keeps between rounds and sends to nobody: difficulty of its examples, chosen rows, private factors.

A payload of `difficulty` (examples,), `NAME/rows` (rows,) bool and `NAME/private`; facts name the federation by its
seed, the number of examples, and the layers that travelled when the rest was made. What does not fit is made anew.
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
class Remembered:
    """`rows` and `private` by name of the factor; both are empty where there is nothing that fits."""

    difficulty: Tensor | None = None
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    private: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        memory: Payload | None,
        session: TrainingSession,
        private: Sequence[str],
        travelling: Sequence[int] | None,
    ) -> "Remembered":
        """What of a memory holds for this session, while the factors `private` do not travel."""
        if memory is None or memory.facts.get("federation_seed") != session.federation_seed:
            return cls()
        difficulty = None
        if _DIFFICULTY in memory and memory.shape(_DIFFICULTY) == (session.examples,):
            difficulty = memory[_DIFFICULTY]
        shapes = {name: tuple(session.trainables[name].shape) for name in private}
        chosen = None if travelling is None else list(travelling)
        fits = memory.facts.get("layers") == chosen and all(
            name + suffix in memory and memory.shape(name + suffix) == expected
            for name, shape in shapes.items()
            for suffix, expected in ((_ROWS, shape[:1]), (_PRIVATE, shape))
        )
        if not fits:
            return cls(difficulty)
        rows = {name: memory[name + _ROWS] for name in private}
        return cls(difficulty, rows, {name: memory[name + _PRIVATE] for name in private})

    def payload(self, session: TrainingSession, travelling: Sequence[int] | None) -> Payload:
        """As a memory. `travelling` None: before the layers were chosen."""
        tensors = {} if self.difficulty is None else {_DIFFICULTY: self.difficulty}
        tensors |= {name + _ROWS: rows for name, rows in self.rows.items()}
        tensors |= {name + _PRIVATE: values for name, values in self.private.items()}
        facts = {"federation_seed": session.federation_seed}
        return Payload(tensors, facts if travelling is None else {**facts, "layers": list(travelling)})
