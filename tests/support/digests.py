"""`python -m tests.support.digests`: digests of payloads made in this interpreter, as one JSON object."""

import hashlib
import json

import torch

from federated.payloads.payload import Payload
from tests.support.rounds_by_hand import first_state, instructions, samples, step_of, updates


def golden_payload() -> Payload:
    """A payload with every kind of content, given in no order."""
    tensors = {
        "z": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.arange(5, dtype=torch.bfloat16),
        "wide": torch.arange(3, dtype=torch.int64),
        "a": torch.tensor(1.5),
        "ü/empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False]),
        "byte": torch.tensor([1, 2, 3], dtype=torch.uint8),
    }
    return Payload(tensors, {"phase": "train", "numbers": [1, 2.5, None], "nested": {"b": 1, "a": "ü"}})


def digest(payload: Payload) -> str:
    """SHA-256 of the payload's bytes."""
    return hashlib.sha256(payload.encode()).hexdigest()


def digests() -> dict[str, str]:
    """By what was made: the golden payload, and of each sample one round's instruction, updates and next state."""
    torch.set_num_threads(1)
    found = {"payload": digest(golden_payload())}
    for index, sample in enumerate(samples()):
        state = first_state(sample)
        told = instructions(sample, state)
        answers = updates(sample, state)
        outcome = sample.server.aggregate(state, answers, step_of(state, sample))
        name = f"{sample.algorithm} {index}"
        found[f"{name} instruction"] = digest(told[1])
        found[f"{name} updates"] = ", ".join(digest(update.payload) for update in answers)
        found[f"{name} state"] = digest(outcome.state)
    return found


if __name__ == "__main__":
    print(json.dumps(digests()))
