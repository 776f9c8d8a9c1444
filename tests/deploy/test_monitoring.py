"""Alerts and the dashboard against the metrics, labels and routes of the coordinator."""

import json
import re
from functools import lru_cache
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from coordinator.app import create_app
from coordinator.operations import gauges
from tests.deploy.deployed import DEPLOY, compose
from tests.support.places import Places, settled

PROMETHEUS = DEPLOY / "prometheus"
# Prometheus' own metric and labels of a target.
BUILT_IN = {"up"}
TARGET_LABELS = {"job", "instance"}
OUR_LABELS = {"method", "route", "status", "state", "role"}
KEYWORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "bool", "offset"}
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


@pytest.fixture(scope="module")
def series(engine: Places, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of all series at /metrics."""
    with settled(engine.migrated(tmp_path_factory.mktemp("data"))):
        families = [*REGISTRY.collect(), *gauges.REGISTRY.collect()]
    return {family.name + suffix for family in families for suffix in _SUFFIXES.get(family.type, ("",))}


def alerts() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text("utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def dashboard() -> dict[str, Any]:
    return dict(json.loads((DEPLOY / "grafana/fedloom.json").read_text("utf-8")))


def expressions() -> dict[str, str]:
    """Every PromQL expression by its alert or panel."""
    by_place = {f"alert {name}": rule["expr"] for name, rule in alerts().items()}
    for panel in dashboard()["panels"]:
        by_place |= {f"panel {panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    return by_place


def unknown_names(expression: str, series: set[str]) -> set[str]:
    """Metrics and labels of the expression that do not exist."""
    labels = {name for name, _, _ in _MATCHER.findall(expression)}
    grouping = re.findall(r"\b(?:by|without|on|ignoring) *\(([^)]*)\)", expression)
    labels |= {name for names in grouping for name in re.findall(r"\w+", names)}
    rest = re.sub(
        r"\{[^}]*\"[^}]*\}|\b(?:by|without|on|ignoring) *\([^)]*\)|\[\w+\]", " ", _without_values(expression)
    )
    names = re.findall(r"\b[a-z_:][\w:]*\b(?! *\()", re.sub(r"\b\d[\w.]*", " ", rest))
    return (labels - OUR_LABELS - TARGET_LABELS - {"le"}) | (set(names) - KEYWORDS - BUILT_IN - series)


def _without_values(expression: str) -> str:
    return re.sub(r'"[^"]*"', '""', expression)


@lru_cache(maxsize=1)
def paths() -> tuple[str, ...]:
    """The routes of the API."""
    return tuple(create_app().openapi()["paths"])


def unmatched_routes(expression: str) -> list[str]:
    """Route matchers that match no route."""
    routes = [(sign, value) for name, sign, value in _MATCHER.findall(expression) if name == "route"]
    return [value for sign, value in routes if not any(_meets(sign, value, path) for path in paths())]


def _meets(sign: str, value: str, path: str) -> bool:
    return re.fullmatch(value, path) is not None if "~" in sign else value == path


class TestExpressions:
    @pytest.mark.parametrize("where", expressions())
    def test_every_metric_and_label_is_exported(self, where: str, series: set[str]) -> None:
        assert unknown_names(expressions()[where], series) == set()

    @pytest.mark.parametrize("where", expressions())
    def test_every_route_is_one_of_the_api(self, where: str) -> None:
        assert unmatched_routes(expressions()[where]) == []

    @pytest.mark.parametrize("where", expressions())
    def test_brackets_close(self, where: str) -> None:
        for left, right in ("()", "[]"):
            bare = _without_values(expressions()[where])
            assert bare.count(left) == bare.count(right)

    def test_what_is_not_exported_is_found(self, series: set[str]) -> None:
        wrong = 'sum by (le, owner) (rate(fedloom_rounds_total{kind="train"}[5m])) / up > 1.5e9'
        assert unknown_names(wrong, series) == {"owner", "kind", "fedloom_rounds_total"}
        assert unmatched_routes('x{route="/metrics",route=~"/v2/.*"}') == ["/v2/.*"]


class TestAlerts:
    @pytest.mark.parametrize("name", alerts())
    def test_an_alert_says_what_it_means_and_how_bad_it_is(self, name: str) -> None:
        rule = alerts()[name]
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].endswith(".")

    def test_they_are_loaded_and_watch_the_job_that_is_scraped(self) -> None:
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
        (scrape,) = config["scrape_configs"]
        jobs = {
            value for rule in alerts().values() for name, _, value in _MATCHER.findall(rule["expr"]) if name == "job"
        }
        assert jobs == {scrape["job_name"]}
        assert config["rule_files"] == ["alerts.yml"]
        assert set(scrape["dns_sd_configs"][0]["names"]) <= set(compose()["services"])


class TestTheDashboard:
    def test_panels_have_their_own_ids_and_places(self) -> None:
        panels = dashboard()["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        cells = [(place["x"] + x, place["y"] + y) for place in (p["gridPos"] for p in panels)
                 for x in range(place["w"]) for y in range(place["h"])]  # fmt: skip
        assert len(cells) == len(set(cells))
        assert max(x for x, _ in cells) < 24

    def test_every_variable_that_is_used_is_defined(self) -> None:
        names = {variable["name"] for variable in dashboard()["templating"]["list"]}
        text = json.dumps(dashboard()["panels"])
        assert set(re.findall(r"\$\{?(\w+)", text)) == names
