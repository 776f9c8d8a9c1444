"""The report of a benchmark: one JSON object on its last line, with the measured figure and its target."""

import json
from collections.abc import Mapping
from typing import Any


def print_report(
    benchmark: str, figure: float, unit: str, *, target: float, holds: bool, details: Mapping[str, Any]
) -> None:
    """Print the line. `figure` and `target` are in `unit`. `holds` may depend on more numbers, given in `details`."""
    document = {
        "benchmark": benchmark,
        "figure": round(figure, 6),
        "unit": unit,
        "target": target,
        "holds": holds,
        "details": dict(details),
    }
    print(json.dumps(document), flush=True)
