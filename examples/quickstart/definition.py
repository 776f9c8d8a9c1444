"""Definition of the demo's federation: the example of its algorithm, on MiniLM, over the demo's text."""

from collections.abc import Mapping
from typing import Any

from examples.quickstart.base_model import MODEL_ID, WEIGHTS_SHA256
from examples.quickstart.tasks import TextTask
from federated import registry
from federated.protocol import Work

ROUNDS = 10
MAX_LENGTH = 64
HELD_OUT = 0.1


def definition(task: TextTask, algorithm: str, rounds: int, seed: int) -> dict[str, Any]:
    """The body of `POST /v1/federations`. Raises UnknownAlgorithm."""
    entry = registry.algorithm(algorithm)
    clients = len(task.parts)
    return {
        "name": task.name,
        "task": {"task": "sequence_classification", "labels": list(task.labels), "max_length": MAX_LENGTH},
        "base_model": {"id": MODEL_ID, "weights_sha256": WEIGHTS_SHA256},
        "algorithm": algorithm,
        "config": dict(entry.example),
        "trainable": dict(entry.example_trainable),
        "rounds": rounds,
        "clients_per_round": clients,
        "min_clients": clients,
        "round_deadline_seconds": 600,
        "seed": seed,
        "evaluation": {"every": 1, "who": "all"},
    }


def work_of(body: Mapping[str, Any]) -> Work:
    """The `Work` of this federation, for training without the service."""
    fields = {name: body[name] for name in ("task", "base_model", "algorithm", "config", "trainable", "rounds")}
    revision = registry.algorithm(body["algorithm"]).revision
    return Work.model_validate({**fields, "algorithm_revision": revision, "federation_seed": body["seed"]})
