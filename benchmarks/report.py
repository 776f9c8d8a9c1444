"""The last line that every benchmark prints: one JSON object that says what was measured and whether it holds."""

import json
from collections.abc import Mapping
from typing import Any


def print_report(
    benchmark: str, figure: float, unit: str, *, target: float, holds: bool, details: Mapping[str, Any]
) -> None:
    """Print the line. `figure` and `target` are in `unit`; `holds` may rest on more than the two, see `details`."""
    document = {
        "benchmark": benchmark,
        "figure": round(figure, 6),
        "unit": unit,
        "target": target,
        "holds": holds,
        "details": dict(details),
    }
    print(json.dumps(document), flush=True)
