"""A node with a canary in every cell, column name and path, and a search for canaries in all that its agent sent."""

import json
from pathlib import Path
from typing import Any

from federated.trainable import Lora
from tests.support import tiny_models
from tests.support.algorithms.breaking.exceptions import CANARY
from tests.support.training import COLORS, work_of
from tests.worker_agent.recording_coordinator import RecordingCoordinator

TRAIN = {"local_steps": 2, "batch_size": 16}
WORK = work_of("bert", Lora(r=2), config=TRAIN).model_dump(mode="json") | {"task": COLORS.model_dump(mode="json")}


def rows(count: int, **changes: Any) -> list[dict[str, Any]]:
    """Rows that fit the federation, but for the changes; every cell holds the canary."""
    made = []
    for number, row in enumerate(tiny_models.color_rows(count)):
        cells = {"text": f"{row['text']} {CANARY} {number}", "label": row["label"], f"{CANARY} column": CANARY}
        made.append(cells | changes)
    return made


def data_sets(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> settings; all but `good` fail, each in another way."""
    folder.mkdir()
    texts = {
        "no-json": f'{{"text": "{CANARY}',
        "doubled-key": f'{{"{CANARY}": "{CANARY}", "{CANARY}": 1}}',
        "no-object": json.dumps([CANARY]),
        "no-utf8": None,
    }
    for name, text in texts.items():
        content = f"{CANARY}\xe9\xff".encode("latin-1") if text is None else text.encode()
        (folder / f"{name}.jsonl").write_bytes(content)
    changed = {
        "good": rows(60),
        "other-labels": rows(60, label=f"{CANARY} label"),
        "no-label": [{"text": CANARY, f"{CANARY} column": CANARY}] * 60,
        "no-text": rows(60, text=None),
        "nested": rows(60, text={CANARY: [CANARY]}, label={CANARY: CANARY}),
        "few": rows(4),
        "one": rows(1),
        "empty": [],
    }
    made = {
        name: {"path": tiny_models.write_rows(folder / f"{name}.jsonl", found)} for name, found in changed.items()
    }
    made |= {name: {"path": folder / f"{name}.jsonl"} for name in texts}
    for name, content in {
        "huge.csv": f"text,label\n{CANARY * 40_000},red\n",
        "ragged.csv": f"text,label\n{CANARY}\n",
        "wide.csv": f"text,label\n{CANARY},red,{CANARY}\n",
        "doubled.csv": f"{CANARY},{CANARY}\n{CANARY},red\n",
        "quoted.csv": f'text,label\n"{CANARY},red\n',
        "damaged.parquet": f"PAR1 {CANARY}",
        "unknown.pickle": CANARY,
    }.items():
        (folder / name).write_text(content, encoding="utf-8")
        made[name.replace(".", "-")] = {"path": folder / name}
    (folder / "damaged-folder").mkdir()
    (folder / "damaged-folder" / "state.json").write_text(CANARY)
    made["damaged-folder"] = {"path": folder / "damaged-folder"}
    made["gone"] = {"path": folder / f"{CANARY}.jsonl"}
    made["both"] = {"path": folder / "good.jsonl", "hub": f"{CANARY}/{CANARY}"}
    made["hub"] = {"hub": str(folder / "damaged-folder")}
    made["unlisted"] = {"path": folder / "good.jsonl", "columns": ["text"]}
    made["mapped"] = {"path": folder / "good.jsonl", "columns": {"text": "text", "label": f"{CANARY} label"}}
    return made


def models(folder: Path) -> dict[str, Path]:
    """Name -> folder; all but `bert` are damaged, each in another file."""
    made = {"bert": tiny_models.bert_folder(folder / "bert")}
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        damaged = tiny_models.bert_folder(folder / f"damaged-{name}")
        (damaged / name).write_text(json.dumps({CANARY: CANARY}) if "tokenizer" in name else CANARY)
        made[f"damaged-{name}"] = damaged
    (folder / CANARY).mkdir()
    return made | {"empty": folder / CANARY, "gone": folder / f"no-{CANARY}"}


def ended(coordinator: RecordingCoordinator) -> dict[str, dict[str, Any]]:
    """Job id -> what was told of its end."""
    told = {}
    for call, body in zip(coordinator.calls, list(coordinator.bodies), strict=False):
        _, _, path = call.partition(" /v1/jobs/")
        if path.endswith(("/fail", "/decline", "/submit")) and isinstance(body, dict):
            told[path.partition("/")[0]] = body
    return told


def assert_no_canary(coordinator: RecordingCoordinator) -> None:
    sent = [*coordinator.calls, *map(repr, coordinator.bodies), *coordinator.headers]
    assert [text for text in sent if CANARY.lower() in text.lower()] == []
