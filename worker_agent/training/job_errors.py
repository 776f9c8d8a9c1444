"""Errors for jobs that this node cannot do, as one tree. The code goes to the coordinator, the text stays here.

JobRefused
├── DataError     data_missing, data_column_missing, data_column_type, data_unknown_label, data_text_empty,
│                 data_empty, data_too_few, cloze_too_long, policy_column, policy_few_examples
├── ModelError    model_missing, model_mismatch, model_incomplete, model_not_causal, model_padding, model_not_finite,
│                 model_unfit, tokenizer_mismatch, device_missing, quantization_missing, trainable_invalid,
│                 cloze_impossible
└── EffortError   policy_steps, policy_passes, policy_unbounded
"""

from federated.protocol import FailureFacts


class JobRefused(Exception):
    """Base of these errors. A retry fails until the owner of this node changes data, model or settings.

    `detail` is for this node's log and its owner only, since it may hold values and paths. `facts` go to the
    coordinator: the requested column, and counts.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        column: str | None = None,
        count: int | None = None,
        of: int | None = None,
        asked: int | None = None,
        allowed: int | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.facts = FailureFacts(column=column, count=count, of=of, asked=asked, allowed=allowed)


class DataError(JobRefused):
    """The data set is missing, not allowed, or unsuitable for the task."""


class ModelError(JobRefused):
    """The base model is not allowed, missing, different from the federation's, or cannot run here."""


class EffortError(JobRefused):
    """The job would do more than the owner of this node allows."""
