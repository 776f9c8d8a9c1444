"""Server app: Flower's own FedAvg, which logs the end of each round and the training times of its clients."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message  # type: ignore[import-not-found]
from flwr.serverapp import Grid, ServerApp  # type: ignore[import-not-found]
from flwr.serverapp.strategy import FedAvg  # type: ignore[import-not-found]
from peft import get_peft_model_state_dict

from .model import build, read_task

app = ServerApp()


class LoggingFedAvg(FedAvg):  # type: ignore[misc]
    """FedAvg that appends a line of JSON to `rounds_file` as soon as a round's adapters are averaged."""

    def __init__(self, rounds_file: Path, **options: Any) -> None:
        super().__init__(**options)
        self._rounds_file = rounds_file

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[Any, Any]:
        """Average, then log the time (seconds since the epoch) and the training seconds of each client."""
        messages = list(replies)
        average: tuple[Any, Any] = super().aggregate_train(server_round, messages)
        failures = [str(reply.error) for reply in messages if reply.has_error()]
        seconds = [reply.content["metrics"]["training_seconds"] for reply in messages if not reply.has_error()]
        line = {"round": server_round, "ended": time.time(), "training": seconds, "failed": failures}
        with self._rounds_file.open("a", encoding="utf-8") as rounds:
            rounds.write(json.dumps(line) + "\n")
        return average


def main(grid: Grid, context: Context) -> None:
    """Run all rounds without evaluation."""
    task = read_task(context.run_config["task"])
    torch.set_num_threads(task["threads"])
    clients = task["clients"]
    strategy = LoggingFedAvg(
        Path(task["rounds_file"]),
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=clients,
        min_available_nodes=clients,
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(get_peft_model_state_dict(build(task))),
        train_config=ConfigRecord(),
        num_rounds=task["rounds"],
    )


app.main()(main)
