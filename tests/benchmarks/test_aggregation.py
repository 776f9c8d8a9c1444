"""The aggregation benchmark: three methods with the same result, and its report."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks import aggregation


def test_the_alternatives_come_to_the_exact_result_but_for_rounding(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    aggregation.make_files(tmp_path, clients=3, layers=1, rank=1)
    try:
        aggregation.METHODS["exact"](tmp_path, 3, 2)
        exact = load_file(tmp_path / "next.safetensors")
        for method in ("stack", "lists"):
            aggregation.METHODS[method](tmp_path, 3, 1)
            other = load_file(tmp_path / "peer.safetensors")
            assert other.keys() == exact.keys()
            for name, value in exact.items():
                torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6)
    finally:
        torch.set_num_threads(threads)


def test_the_last_line_is_the_report(tmp_path: Path) -> None:
    small = ["--clients", "3", "--few-clients", "2", "--peer-clients", "2", "--layers", "1", "--rank", "1"]
    once = ["--repeats", "1", "--processes", "1", "--threads", "1", "--folder", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.aggregation", *small, *once]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    report = json.loads(answer.stdout.splitlines()[-1])
    assert list(report) == ["benchmark", "figure", "unit", "target", "holds", "details"]
    assert (report["benchmark"], report["unit"], report["target"]) == ("aggregation", "s", 2.5)
    assert report["details"]["peers_at_2_clients"].keys() == {"stack", "lists"}
    assert list(tmp_path.iterdir()) == []
