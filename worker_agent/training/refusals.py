"""Why a job cannot be done on this node, one tree; the code travels to the coordinator with the detail.

JobRefused
├── DataError     data_missing, data_column_missing, data_unknown_label, data_empty, cloze_too_long
└── ModelError    model_missing, model_mismatch, device_missing, quantization_missing,
                  trainable_invalid, cloze_impossible
"""


class JobRefused(Exception):
    """Nothing will change until the owner of this node changes data, model or settings."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class DataError(JobRefused):
    """The data set is not there, or not what the task needs."""


class ModelError(JobRefused):
    """The base model is not allowed, not there, other than the federation's, or cannot run here."""
