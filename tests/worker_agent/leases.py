"""Leases for tests of the agent, and the submissions for them."""

from datetime import UTC, datetime
from typing import Any

from federated.protocol import Description, Lease, SubmitRequest
from federated.trainable import ModelFacts

_WORK = {
    "task": {"task": "sequence_classification", "labels": ["no", "yes"]},
    "base_model": {"id": "small"},
    "trainable": {"kind": "lora", "r": 4},
    "algorithm": "fedavg",
    "algorithm_revision": 1,
    "config": {"local_steps": 20},
    "federation_seed": 7,
    "rounds": 3,
}

_FACTS = ModelFacts(
    model_type="bert",
    task_type="SEQ_CLS",
    tensors=(),
    layers=1,
    hidden=8,
    kv_width=8,
    weights_digest="sha256:" + "0" * 64,
)
SUBMISSION = SubmitRequest(description=Description(model=_FACTS, examples=5, evaluation_examples=1))


def make_lease(work: dict[str, Any] | None = None, **fields: Any) -> Lease:
    """A train job of round 1; `fields` replace the lease's, `work` the federation's."""
    usual: dict[str, Any] = {
        "job_id": "job_1",
        "kind": "train",
        "attempt": 1,
        "federation_id": "fed_1",
        "federation_name": "intents",
        "client_id": "clt_1",
        "ordinal": 0,
        "dataset": "messages",
        "round_number": 1,
        "round_kind": "train",
        "seed": 11,
        "instruction": None,
        "memory": None,
        "lease_seconds": 60.0,
        "expires_at": datetime.now(UTC),
    }
    return Lease.model_validate(usual | fields | {"work": _WORK | (work or {})})
