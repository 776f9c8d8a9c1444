"""Failure reports of a node: codes, the facts that may leave the node, and the sentences for users.

An agent sends a code and `FailureFacts` but no text, so the content of rows, file names or messages of libraries
cannot leave the node. The recipient builds the sentence with this module.
"""

import builtins
from collections.abc import Iterator
from types import MappingProxyType
from typing import Final

from pydantic import Field

from federated.bounds import Amount
from federated.names import Name
from federated.trainable import Plain

CODE_PATTERN = r"^[a-z0-9_]{1,64}$"
REFERENCE_DIGITS = 8
_PACKAGES = frozenset({"builtins", "torch", "safetensors", "federated", "worker_agent", "coordinator"})


class FailureFacts(Plain):
    """Details of a failure besides its code.

    `column` is a column that the federation reads. The failure concerns `count` of `of` rows. `asked` exceeds the
    node's limit `allowed`. `error` is the type of an unexpected exception, and `place` the line of Fedloom's own code
    that raised it. `reference` identifies the full text in the node's own log.
    """

    dataset: Name | None = None
    column: str | None = Field(default=None, max_length=128)
    count: Amount | None = None
    of: Amount | None = None
    asked: Amount | None = None
    allowed: Amount | None = None
    error: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")
    place: str | None = Field(default=None, pattern=r"^[a-z_][a-z0-9_.]{0,127}:[0-9]{1,6}$")
    reference: str | None = Field(default=None, pattern=rf"^[0-9a-f]{{{REFERENCE_DIGITS}}}$")


SENTENCES: Final = MappingProxyType(
    {
        "agent_error": "The worker agent had an internal error.",
        "agent_stopping": "The worker agent is shutting down and returned the job.",
        "algorithm_missing": "The node does not have the federation's algorithm in its revision.",
        "artifact_damaged": "The node received data that does not match its digest.",
        "cloze_impossible": "The node's base model cannot fill the gap of the cloze with these words.",
        "cloze_too_long": "The cloze template alone has more tokens than the model takes.",
        "coordinator_trouble": "The worker agent could not communicate with the coordinator for this job.",
        "data_column_missing": "The data set does not have a column that the federation reads, or a value in it.",
        "data_column_type": "A column that the federation reads holds more than text, numbers and truth values.",
        "data_empty": "The data set has no rows to train on.",
        "data_missing": "The data set is not on the node, or cannot be read.",
        "data_text_empty": "Rows have no text that the node's base model could read.",
        "data_too_few": "The data set has fewer examples than the node's minimum.",
        "data_unknown_label": "Rows have a label that is not in the federation's list.",
        "device_missing": "The device in the node's settings is missing.",
        "directions_differ": "The node computes other directions than the federation.",
        "disk_full": "The node's disk is full.",
        "executor_died": "The training process was terminated.",
        "executor_not_understood": "The training process sent an invalid message.",
        "factors_not_linear": "The algorithm cannot score the examples of this base model one by one.",
        "instruction_invalid": "The job's instruction cannot be read.",
        "lease_invalid": "The job cannot be read by the node's worker agent.",
        "layers_unknown": "The layers of the node's base model cannot be identified.",
        "model_incomplete": "The files of the node's base model lack weights that the federation's task needs.",
        "model_mismatch": "The node's base model is not the federation's.",
        "model_missing": "The node does not have the federation's base model, or cannot load it.",
        "model_not_causal": "Tokens attend to later ones in the node's base model: it cannot learn to generate text.",
        "model_not_finite": (
            "The loss or its gradient is not finite before the first training step: check the weights of the "
            "node's base model and its dtype."
        ),
        "model_padding": "The node's base model gives another result for a padded example.",
        "model_unfit": "The node's base model failed in a forward and backward pass over an example.",
        "out_of_memory": "The job does not fit into the memory of the node's device.",
        "policy_algorithm": "The node does not allow the algorithm.",
        "policy_approval": "The node's owner has not approved this: worker-agent approve, with the federation's id.",
        "policy_column": "The node's owner has not allowed the federation to read this column.",
        "policy_dataset": "The node does not allow the data set in federations.",
        "policy_download": "The job's instruction is larger than the node allows.",
        "policy_few_examples": "The job would use fewer examples than the node's minimum.",
        "policy_organization": "The node does not work for the organization that owns the federation.",
        "policy_passes": "The job needs more passes over the examples than the node allows.",
        "policy_rank": "The job needs a higher rank than the node allows.",
        "policy_seconds": "The job took longer than the node allows.",
        "policy_steps": "The job needs more local steps than the node allows.",
        "policy_unbounded": "The node limits its jobs, and the algorithm declares no upper bound for this one.",
        "quantization_missing": "The node's quantization needs a library that is not installed.",
        "result_damaged": "The result was damaged on the node's disk.",
        "result_refused": "The coordinator refused the result.",
        "second_derivative_missing": "The node's base model cannot be differentiated twice.",
        "tokenizer_mismatch": "The node's tokenizer has more tokens than its base model has embeddings.",
        "trainable_invalid": "What the federation trains does not fit the node's base model.",
        "training_diverged": "The loss became infinite or NaN: a smaller learning_rate may help.",
        "upload_too_large_for_proxy": (
            "A proxy in front of the coordinator refuses bodies as large as a chunk of the result: its operator "
            "raises the limit, or the coordinator's operator lowers chunk_bytes."
        ),
        "training_failed": "Training failed with an unexpected error.",
    }
)
UNKNOWN: Final = "The job failed on its node."


def sentence(code: str, facts: FailureFacts | None = None) -> str:
    """The failure as a sentence for the owners of federation and node. An unknown code gets a general one."""
    facts = facts or FailureFacts()
    text = SENTENCES.get(code, UNKNOWN)
    details = ", ".join(_details(facts))
    more = f" The node's log has the full text under {facts.reference}." if facts.reference else ""
    return f"{text.removesuffix('.')}{f' ({details})' if details else ''}.{more}"


def type_name(error: BaseException) -> str:
    """Name of the nearest class of an exception in a trusted package. Other class names may contain private text."""
    for kind in type(error).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in _PACKAGES and (package != "builtins" or getattr(builtins, kind.__name__, None) is kind):
            return kind.__name__
    return "Exception"


def _details(facts: FailureFacts) -> Iterator[str]:
    if facts.dataset is not None:
        yield f"data set {facts.dataset!r}"
    if facts.column is not None:
        yield f"column {facts.column!r}"
    if facts.count is not None:
        yield f"{facts.count} rows" if facts.of is None else f"{facts.count} of {facts.of} rows"
    if facts.asked is not None:
        yield f"asked for {facts.asked}"
    if facts.allowed is not None:
        yield f"the node's limit is {facts.allowed}"
    if facts.error is not None:
        yield facts.error if facts.place is None else f"{facts.error} at {facts.place}"
