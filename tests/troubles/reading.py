"""A file of rows on its way to a model: written, read by a node, split and tokenized."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing

from federated.protocol import TaskDefinition
from worker_agent.settings import AgentSettings, DatasetSettings
from worker_agent.training.data import load_split
from worker_agent.training.job_errors import DataError
from worker_agent.training.tokens import Examples, Tokenization, load_tokenizer, tokenize

LIMIT = 32


def json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """A JSONL file's content."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def bare_tokenizer(folder: Path) -> Any:
    """A model's tokenizer that adds nothing, as those of GPT-2 and Qwen."""
    tokenizer: Any = load_tokenizer(folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return tokenizer


class Reader:
    """A node with a folder for files and a tokenizer, which reads them for a task."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.folder = folder
        self.tokenizer = tokenizer

    def settings(self, name: str, content: str | bytes, **dataset: Any) -> AgentSettings:
        """A node's with the file as data set `mine`, of which nothing is held out."""
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return AgentSettings(datasets={"mine": DatasetSettings(path=path, **{"held_out": 0, **dataset})})

    def examples(self, name: str, content: str | bytes, task: TaskDefinition, **dataset: Any) -> Examples:
        """The file's examples. Raises DataError."""
        settings = self.settings(name, content, **dataset)
        how = Tokenization(task, settings.datasets["mine"].readable, self.tokenizer, LIMIT, segments=True)
        return tokenize(load_split(settings, "mine").train, how)

    def classes(self, name: str, content: str | bytes, task: TaskDefinition, **dataset: Any) -> list[int]:
        """The class of each row. Raises DataError."""
        found: list[int] = self.examples(name, content, task, **dataset).targets.tolist()
        return found

    def words(self, name: str, content: str | bytes, task: TaskDefinition, **dataset: Any) -> list[str]:
        """The tokens of each row, in a line. Raises DataError."""
        examples = self.examples(name, content, task, **dataset)
        rows = [examples.batch([index], torch.device("cpu")).inputs["input_ids"][0] for index in range(len(examples))]
        return [" ".join(self.tokenizer.convert_ids_to_tokens(row)) for row in rows]

    def refusal(self, name: str, content: str | bytes, task: TaskDefinition, **dataset: Any) -> tuple[str, str]:
        """The code and the node's own text of a refusal; "" and "" if the file is read."""
        try:
            self.examples(name, content, task, **dataset)
        except DataError as error:
            return error.code, error.detail
        return "", ""
