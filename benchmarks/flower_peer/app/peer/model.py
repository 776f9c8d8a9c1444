"""The model of client and server: MiniLM with low-rank adapters and a classifier."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def read_task(path: str) -> dict[str, Any]:
    """Read the description of the task, which the benchmark writes."""
    task: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return task


def build(task: Mapping[str, Any]) -> Any:
    """Build a PEFT model with a fresh adapter."""
    base = AutoModelForSequenceClassification.from_pretrained(
        task["model"], num_labels=len(task["labels"]), local_files_only=True
    )
    return get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=task["rank"], lora_alpha=task["lora_alpha"]))
