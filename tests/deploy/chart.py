"""Helm's lint and rendering of the chart.

Helm's own Go library runs in a separate process, because a Go runtime must not be in a process that forks. The
process reads a list of values from standard input and prints a rendering of each, both as JSON: `python -m
tests.deploy.chart`.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.architecture.sizes import ROOT

CHART = ROOT / "deploy/helm/fedloom"
RELEASE = "trial"
DIGEST = f"sha256:{'0' * 64}"
HELM_IS_HERE = importlib.util.find_spec("helm_python") is not None
_WARNING = 2


@dataclass(frozen=True, slots=True)
class Rendering:
    """Output of `helm template` and `helm lint` for some values. `refusal` names the fault in the values."""

    texts: Mapping[str, str]
    findings: Sequence[str]
    refusal: str

    @property
    def objects(self) -> dict[str, dict[str, Any]]:
        """The object of each file that renders one."""
        objects_by_file = {name: list(yaml.safe_load_all(text)) for name, text in self.texts.items() if text.strip()}
        assert all(len(objects) == 1 for objects in objects_by_file.values())
        return {name: dict(objects[0]) for name, objects in objects_by_file.items()}

    @property
    def pods(self) -> dict[str, dict[str, Any]]:
        """Pod specifications by file."""
        return {name: obj["spec"]["template"]["spec"] for name, obj in self.objects.items() if _has_pods(obj)}


def _has_pods(obj: Mapping[str, Any]) -> bool:
    return obj["kind"] in ("Deployment", "Job")


def render(*values: Mapping[str, Any]) -> list[Rendering]:
    """Render the chart with each of these values in place of its own."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.deploy.chart"], input=json.dumps(values), cwd=ROOT, check=True, timeout=60,
        capture_output=True, text=True,
    )  # fmt: skip
    return [Rendering(**one) for one in json.loads(process.stdout)]


@cache
def as_it_is() -> Rendering:
    """The chart with its own values."""
    return render({})[0]


@cache
def with_all() -> Rendering:
    """The chart with all options enabled."""
    return render(
        {
            "image": {"tag": "1.2.3", "digest": DIGEST, "pullSecrets": [{"name": "registry"}]},
            "migrationSecretName": "fedloom-owner",
            "signingKeySecretName": "fedloom-signing-key",
            "networkPolicy": {
                "database": {"podLabels": {"app": "postgres"}},
                "broker": {"podLabels": {"app": "redis"}},
                "store": {"port": 9000, "addresses": ["10.1.2.3/32"]},
                "moreEgress": [{"to": [{"podSelector": {"matchLabels": {"app": "collector"}}}]}],
            },
            "monitoring": {"enabled": True},
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
        }
    )[0]


def _render_here(values: dict[str, Any]) -> dict[str, Any]:
    import helm_python

    lint = helm_python.lint(CHART, values, strict=True)
    findings = [
        f"{message['path']}: {message['error']}" for message in lint["messages"] if message["severity"] >= _WARNING
    ]
    with helm_python.Chart.load(CHART) as chart:
        try:
            chart.validate_schema(chart.merge_values(values))
            texts = chart.render(values, name=RELEASE, namespace="fedloom")
        except helm_python.HelmError as error:
            return {"texts": {}, "findings": findings, "refusal": str(error)}
    return {"texts": {Path(name).name: text for name, text in texts.items()}, "findings": findings, "refusal": ""}


if __name__ == "__main__":
    print(json.dumps([_render_here(values) for values in json.load(sys.stdin)]))
