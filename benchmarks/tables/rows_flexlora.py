"""Table of FlexLoRA: aggregations of mixed ranks from 2 to 32, the lowest rank for all, and their decay of W."""

from collections.abc import Mapping
from typing import Any

from benchmarks.tables.definition import Row, Table

RANKS = (2, 4, 8, 16, 32)
TRAINING = {"local_steps": 5, "batch_size": 8, "learning_rate": 2e-3}
RANK_SETTINGS = tuple({"rank": rank} for rank in RANKS)


def _lora(rank: int) -> Mapping[str, Any]:
    # The scaling that flexlora applies to the rank of each client.
    return {"kind": "lora", "r": rank, "lora_alpha": 16, "use_rslora": True, "target_modules": ["query", "value"]}


def _flexlora(name: str, aggregation: str) -> Row:
    cells = {"ranks": f"{RANKS[0]} to {RANKS[-1]}"}
    config = {**TRAINING, "aggregation": aggregation}
    return Row(name, "flexlora", config, _lora(RANKS[-1]), RANK_SETTINGS, cells)


ROWS = (
    Row("FedAvg at the lowest rank", "fedavg", TRAINING, _lora(RANKS[0]), cells={"ranks": str(RANKS[0])}),
    _flexlora("zero-pad (HetLoRA)", "zero_pad"),
    _flexlora("product (FlexLoRA's paper)", "product"),
    _flexlora("delta", "delta"),
    _flexlora("rank-aware (raFLoRA)", "rank_aware"),
)


def _decay_text() -> str:
    # Imported here, so that the rows can be read without torch.
    from benchmarks.tables.sigma_decay import text

    return text("flexlora", ("product", "zero_pad", "delta", "rank_aware"), RANKS)


TABLE = Table(name="flexlora", rows=ROWS, rounds=10, cohort=10, appendix=_decay_text)
