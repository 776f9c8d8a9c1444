"""The Helm chart: lint and rendering by Helm, and validation of every object for Kubernetes."""

import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from coordinator.settings import Settings
from tests.deploy import chart, deployed
from tests.deploy.chart import Rendering

pytestmark = pytest.mark.skipif(not chart.HELM_IS_HERE, reason="helm-python-sdk has no wheel for this machine")
TEMPLATES = {path.name: path.read_text("utf-8") for path in sorted((chart.CHART / "templates").iterdir())}
OLDEST, NEWEST = "1.27", kubernetes_validate.latest_version()
FULL = {"web.yaml", "background.yaml", "beat.yaml", "migrate.yaml"}


def values() -> dict[str, Any]:
    return dict(yaml.safe_load((chart.CHART / "values.yaml").read_text("utf-8")))


def leaves(part: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, value in part.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{above}{key}.")
        else:
            yield above + key


@pytest.fixture(params=["as it is", "with all"])
def rendering(request: pytest.FixtureRequest) -> Rendering:
    return chart.as_it_is() if request.param == "as it is" else chart.with_all()


class TestHelm:
    def test_it_has_nothing_to_say_against_the_chart(self, rendering: Rendering) -> None:
        assert (rendering.refusal, rendering.findings) == ("", [])

    def test_every_template_makes_one_object(self) -> None:
        assert chart.with_all().objects.keys() == TEMPLATES.keys() - {"_names.tpl"}
        more = {"monitor.yaml", "policy-broker.yaml", "policy-database.yaml"}
        assert chart.with_all().objects.keys() - chart.as_it_is().objects.keys() == more

    @pytest.mark.parametrize(
        ("overrides", "name"),
        [
            ({"web": {"replica": 3}}, "replica"),
            ({"web": {"replicas": 0}}, "/web/replicas"),
            ({"setings": {}}, "setings"),
            ({"settings": {"FEDLOOM_WEB_THREADS": 40}}, "/settings/FEDLOOM_WEB_THREADS"),
            ({"settings": {"WEB_THREADS": "40"}}, "WEB_THREADS"),
            ({"background": {"diskSize": "much"}}, "/background/diskSize"),
            ({"secretName": ""}, "/secretName"),
            ({"service": {"port": 80_000}}, "/service/port"),
            ({"image": {"digest": "sha256:1"}}, "/image/digest"),
            ({"networkPolicy": {"store": {"addresses": ["s3.example.org"]}}}, "/networkPolicy/store/addresses/0"),
        ],
    )
    def test_a_value_that_cannot_be_is_refused_by_name(self, overrides: dict[str, Any], name: str) -> None:
        (rendering,) = chart.render(overrides)
        assert name in rendering.refusal
        assert any(name in finding for finding in rendering.findings)

    def test_values_turn_up_where_they_belong(self) -> None:
        of_all = chart.with_all()
        for name in FULL:
            pod = of_all.pods[name]
            assert pod["imagePullSecrets"] == [{"name": "registry"}]
            assert pod["nodeSelector"] == {"disk": "ssd"}
            assert pod["tolerations"][0]["key"] == "dedicated"
            assert pod["containers"][0]["image"].endswith(f"/fedloom-coordinator:1.2.3@{chart.DIGEST}")
        (signing,) = [one for one in of_all.pods["background.yaml"]["volumes"] if one["name"] == "signing-key"]
        assert signing["secret"] == {"secretName": "fedloom-signing-key", "defaultMode": 0o440}
        variables = {one["name"]: one["value"] for one in of_all.pods["background.yaml"]["containers"][0]["env"]}
        assert variables["FEDLOOM_SIGNING_KEY"] == "/etc/fedloom/signing-key.pem"

    def test_without_an_ingress_there_is_none(self) -> None:
        (rendering,) = chart.render({"ingress": {"enabled": False}})
        assert rendering.refusal == ""
        assert chart.as_it_is().objects.keys() - rendering.objects.keys() == {"ingress.yaml"}


class TestValues:
    def test_every_value_is_named_by_a_template(self) -> None:
        paths = {path for text in TEMPLATES.values() for path in re.findall(r"\.Values\.([\w.]+)", text)}
        assert len(paths) > 20
        assert [leaf for leaf in leaves(values()) if not any(f"{leaf}.".startswith(f"{p}.") for p in paths)] == []

    def test_the_schema_knows_every_value(self) -> None:
        schema = yaml.safe_load((chart.CHART / "values.schema.json").read_text("utf-8"))
        jsonschema.validate(values(), schema)
        for name, part in values().items():
            definition = schema["properties"][name]
            if definition.get("additionalProperties") is False:
                assert definition["properties"].keys() == part.keys()

    def test_the_proxys_limits_fit_the_coordinators(self) -> None:
        annotations = values()["ingress"]["annotations"]
        assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == f"{Settings().chunk_bytes // 2**20}m"


class TestObjects:
    @pytest.mark.parametrize("version", [OLDEST, NEWEST])
    def test_kubernetes_would_take_them(self, rendering: Rendering, version: str) -> None:
        objects = [obj for name, obj in rendering.objects.items() if name != "monitor.yaml"]  # the operator's
        assert len(objects) >= 12
        for obj in objects:
            kubernetes_validate.validate(obj, version, strict=True)

    def test_the_oldest_version_is_the_charts(self) -> None:
        metadata = yaml.safe_load((chart.CHART / "Chart.yaml").read_text("utf-8"))
        assert metadata["kubeVersion"] == f">={OLDEST}.0-0"

    def test_all_have_the_charts_labels(self, rendering: Rendering) -> None:
        for obj in rendering.objects.values():
            assert obj["metadata"]["labels"]["app.kubernetes.io/name"] == "fedloom"
            assert obj["metadata"]["labels"]["app.kubernetes.io/instance"] == chart.RELEASE

    @pytest.mark.parametrize("name", ["web.yaml", "background.yaml", "beat.yaml"])
    def test_a_deployment_selects_its_own_pods(self, rendering: Rendering, name: str) -> None:
        spec = rendering.objects[name]["spec"]
        selector = spec["selector"]["matchLabels"]
        assert selector["app.kubernetes.io/component"] == name.removesuffix(".yaml")
        assert selector.items() <= spec["template"]["metadata"]["labels"].items()

    def test_the_service_the_budget_and_the_spread_select_the_web(self, rendering: Rendering) -> None:
        web = rendering.objects["web.yaml"]["spec"]["selector"]["matchLabels"]
        assert rendering.objects["service.yaml"]["spec"]["selector"] == web
        assert rendering.objects["disruption.yaml"]["spec"]["selector"]["matchLabels"] == web
        (spread,) = rendering.pods["web.yaml"]["topologySpreadConstraints"]
        assert spread["labelSelector"]["matchLabels"] == web

    def test_the_ingress_leads_to_the_service_and_not_to_the_metrics(self, rendering: Rendering) -> None:
        service = rendering.objects["service.yaml"]
        (rule,) = rendering.objects["ingress.yaml"]["spec"]["rules"]
        assert {path["backend"]["service"]["name"] for path in rule["http"]["paths"]} == {service["metadata"]["name"]}
        assert not [path for path in rule["http"]["paths"] if "/metrics".startswith(path["path"])]

    def test_the_monitor_asks_the_service(self) -> None:
        objects = chart.with_all().objects
        selector = objects["monitor.yaml"]["spec"]["selector"]["matchLabels"]
        assert selector.items() <= objects["service.yaml"]["metadata"]["labels"].items()

    def test_one_beat_and_never_two(self, rendering: Rendering) -> None:
        beat = rendering.objects["beat.yaml"]["spec"]
        assert (beat["replicas"], beat["strategy"]) == (1, {"type": "Recreate"})

    def test_the_database_is_migrated_before_an_upgrade(self, rendering: Rendering) -> None:
        job = rendering.objects["migrate.yaml"]
        assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert job["spec"]["template"]["spec"]["containers"][0]["args"] == ["migrate"]


class TestSecrets:
    def test_the_owner_of_the_tables_is_known_to_the_job_alone_that_migrates(self) -> None:
        of_all = chart.with_all()
        secrets = {
            name: [source["secretRef"]["name"] for source in pod["containers"][0]["envFrom"]]
            for name, pod in of_all.pods.items()
        }
        assert secrets.pop("migrate.yaml") == ["fedloom", "fedloom-owner"]
        assert list(secrets.values()) == [["fedloom"]] * 3


class TestPods:
    def test_there_are_four_kinds(self, rendering: Rendering) -> None:
        assert rendering.pods.keys() == FULL

    @pytest.mark.parametrize("name", sorted(FULL))
    def test_a_pod_runs_as_the_images_user_and_can_change_nothing(self, rendering: Rendering, name: str) -> None:
        pod = rendering.pods[name]
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

    @pytest.mark.parametrize("name", sorted(FULL))
    def test_what_is_mounted_is_a_volume_and_the_data_folder_is(self, rendering: Rendering, name: str) -> None:
        pod = rendering.pods[name]
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
        variables = deployed.variables_of(deployed.DOCKERFILES["coordinator.Dockerfile"])
        assert mounts["data"] == variables["FEDLOOM_DATA_FOLDER"]
        env = {row["name"]: row.get("value") for row in pod["containers"][0]["env"]}
        # The volume is open to its group; the folder below it is made by the process, for itself.
        assert env["FEDLOOM_DATA_FOLDER"] == f"{mounts['data']}/data"

    @pytest.mark.parametrize("name", sorted(FULL))
    def test_variables_are_the_values_in_the_order_of_their_names(self, rendering: Rendering, name: str) -> None:
        variables = {
            **values()["settings"],
            **values()["environment"],
            "FEDLOOM_DATA_FOLDER": "/var/lib/fedloom/data",
        }
        env = rendering.pods[name]["containers"][0]["env"]
        assert env[: len(variables)] == [{"name": key, "value": variables[key]} for key in sorted(variables)]
