"""The Helm chart without Helm: values and templates know each other, and what is written out is sound.

What Helm itself would render is not seen here.
"""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.settings import Settings
from tests.deploy import deployed

TEXTS = {**deployed.templates(), **deployed.defined()}


def used() -> set[str]:
    """Every path below `.Values` that a template names."""
    return {path for text in TEXTS.values() for path in re.findall(r"\.Values\.([\w.]+)", text)}


def leaves(part: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, value in part.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{above}{key}.")
        else:
            yield above + key


class TestValues:
    def test_every_value_that_a_template_names_exists(self) -> None:
        assert len(used()) > 20
        for path in used():
            deployed.looked_up(f".Values.{path}")

    def test_every_value_is_named_by_a_template(self) -> None:
        unused = [
            leaf for leaf in leaves(deployed.values()) if not any(f"{leaf}.".startswith(f"{p}.") for p in used())
        ]
        assert unused == []

    def test_what_becomes_a_variable_is_a_string(self) -> None:
        variables = {**deployed.values()["settings"], **deployed.values()["environment"]}
        assert {type(value) for value in variables.values()} == {str}

    def test_the_proxys_limits_fit_the_coordinators(self) -> None:
        annotations = deployed.values()["ingress"]["annotations"]
        assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == f"{Settings().chunk_bytes // 2**20}m"


class TestTemplates:
    @pytest.mark.parametrize("name", TEXTS)
    def test_blocks_are_opened_and_closed(self, name: str) -> None:
        words = re.findall(r"\{\{-? *(if|with|range|end)\b", TEXTS[name])
        depth = 0
        for word in words:
            depth += -1 if word == "end" else 1
            assert depth >= 0
        assert depth == 0
        assert len(re.findall(r"\{\{[^{}\n]+\}\}", TEXTS[name])) == TEXTS[name].count("{{")

    def test_every_named_template_that_is_included_is_defined(self) -> None:
        included = {name for text in TEXTS.values() for name in re.findall(r'include "([\w.]+)"', text)}
        assert included == set(deployed.defined())

    @pytest.mark.parametrize("name", deployed.templates())
    def test_a_template_is_one_object(self, name: str) -> None:
        made = deployed.objects()[name]
        assert {"apiVersion", "kind", "metadata"} <= set(made)
        assert made["metadata"]["labels"]["app.kubernetes.io/name"] == "fedloom"

    @pytest.mark.parametrize("name", ["web.yaml", "background.yaml", "beat.yaml"])
    def test_a_deployment_selects_its_own_pods(self, name: str) -> None:
        made = deployed.objects()[name]["spec"]
        selected = made["selector"]["matchLabels"]
        assert selected["app.kubernetes.io/component"] == name.removesuffix(".yaml")
        assert selected.items() <= made["template"]["metadata"]["labels"].items()

    def test_the_service_and_the_budget_select_the_web(self) -> None:
        web = deployed.objects()["web.yaml"]["spec"]["selector"]["matchLabels"]
        assert deployed.objects()["service.yaml"]["spec"]["selector"] == web
        assert deployed.objects()["disruption.yaml"]["spec"]["selector"]["matchLabels"] == web

    def test_one_beat_and_never_two(self) -> None:
        beat = deployed.objects()["beat.yaml"]["spec"]
        assert (beat["replicas"], beat["strategy"]) == (1, {"type": "Recreate"})

    def test_the_database_is_migrated_before_an_upgrade(self) -> None:
        job = deployed.objects()["migrate.yaml"]
        assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert job["spec"]["template"]["spec"]["containers"][0]["args"] == ["migrate"]


class TestPods:
    def test_there_are_four_kinds(self) -> None:
        assert set(deployed.pods()) == {"web.yaml", "background.yaml", "beat.yaml", "migrate.yaml"}

    @pytest.mark.parametrize("name", deployed.pods())
    def test_a_pod_runs_as_the_images_user_and_can_change_nothing(self, name: str) -> None:
        pod = deployed.pods()[name]
        user, group = deployed.last(deployed.DOCKERFILES["coordinator.Dockerfile"], "USER").split(":")
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": int(user),
            "runAsGroup": int(group),
            "fsGroup": int(group),
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert pod["automountServiceAccountToken"] is False
        assert [container["securityContext"] for container in pod["containers"]] == [
            {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        ]

    @pytest.mark.parametrize("name", deployed.pods())
    def test_what_is_mounted_is_a_volume_and_the_data_folder_is(self, name: str) -> None:
        pod = deployed.pods()[name]
        mounted = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
        variables = deployed.variables_of(deployed.DOCKERFILES["coordinator.Dockerfile"])
        assert mounted["data"] == variables["FEDLOOM_DATA_FOLDER"]
