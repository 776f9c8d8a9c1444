"""Summary of a data set for the owner of the node: rows, label counts and token lengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker_agent.settings import AgentSettings
from worker_agent.training.data import load_split
from worker_agent.training.labels import label_counts
from worker_agent.training.tables import Table
from worker_agent.training.tokens import load_tokenizer
from worker_agent.training.values import values


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """Summary of a data set; `token_lengths` are quantiles in tokens, or None without a tokenizer."""

    name: str
    columns: tuple[str, ...]
    rows: int
    held_out_rows: int
    label_counts: Mapping[str, int]
    token_lengths: Mapping[str, int] | None


def describe_dataset(
    settings: AgentSettings, name: str, labels: Sequence[str] | None = None, tokenizer_path: str | None = None
) -> DatasetSummary:
    """Rows, label counts (train and held out) and token lengths of a data set. Raises DataError.

    With `labels`, counts are by those names, and any other label is an error.
    """
    split = load_split(settings, name)
    mapping = settings.datasets[name].readable
    parts = [part for part in (split.train, split.held_out) if part.rows]
    return DatasetSummary(
        name=name,
        columns=tuple(sorted(split.train.columns)),
        rows=split.train.rows,
        held_out_rows=split.held_out.rows,
        label_counts=label_counts(parts, mapping, labels),
        token_lengths=None if tokenizer_path is None else _token_lengths(parts, mapping, tokenizer_path),
    )


def _token_lengths(parts: Sequence[Table], mapping: Mapping[str, str], tokenizer_path: str) -> dict[str, int]:
    is_classification = mapping.get("text") in parts[0].columns
    columns_read = ("text", "text_pair") if is_classification else ("instruction", "input", "output")
    present = [name for name in columns_read if mapping.get(name) in parts[0].columns] or columns_read[:1]
    tokenizer = load_tokenizer(Path(tokenizer_path))
    lengths: list[int] = []
    for part in parts:
        columns = [["" if cell is None else str(cell) for cell in values(part, name, mapping)] for name in present]
        texts = ["\n".join(row) for row in zip(*columns, strict=True)]
        lengths += [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
    lengths.sort()
    quantiles = {"median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: lengths[min(int(share * len(lengths)), len(lengths) - 1)] for name, share in quantiles.items()}
