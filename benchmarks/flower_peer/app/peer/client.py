"""Client app of a SuperNode: builds the model, loads the adapter of the round, trains it and sends it back."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import (  # type: ignore[import-not-found]
    ArrayRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp  # type: ignore[import-not-found]
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoTokenizer

from .model import build, read_task

app = ClientApp()


def train(message: Message, context: Context) -> Message:
    """Train for one round. The metric `training_seconds` is the time inside the gradient loop."""
    task = read_task(context.run_config["task"])
    torch.set_num_threads(task["threads"])
    model = build(task)
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    rows = [json.loads(line) for line in Path(context.node_config["rows"]).read_text(encoding="utf-8").splitlines()]
    examples = _encode(rows, task)
    torch.manual_seed(message.content["config"]["server-round"])
    start = time.perf_counter()
    loss = _steps(model, examples, task)
    metrics = {"training_seconds": time.perf_counter() - start, "loss": loss, "num-examples": len(rows)}
    content = RecordDict({"arrays": ArrayRecord(get_peft_model_state_dict(model)), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=message)


def _encode(rows: Sequence[Mapping[str, str]], task: Mapping[str, Any]) -> list[dict[str, Any]]:
    tokenizer = AutoTokenizer.from_pretrained(task["model"], local_files_only=True)
    texts = tokenizer([row["text"] for row in rows], truncation=True, max_length=task["max_length"])
    return [
        {"input_ids": ids, "labels": task["labels"].index(row["label"])}
        for ids, row in zip(texts["input_ids"], rows, strict=True)
    ]


def _steps(model: Any, examples: Sequence[Mapping[str, Any]], task: Mapping[str, Any]) -> float:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=task["learning_rate"], weight_decay=0.0)
    order = torch.cat([torch.randperm(len(examples)) for _ in range(1 + _examples(task) // len(examples))]).tolist()
    model.train()
    losses = []
    for start in range(0, _examples(task), task["batch_size"]):
        batch = [examples[index] for index in order[start : start + task["batch_size"]]]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in batch], batch_first=True)
        labels = torch.tensor([row["labels"] for row in batch])
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def _examples(task: Mapping[str, Any]) -> int:
    return int(task["steps"]) * int(task["batch_size"])


app.train()(train)
