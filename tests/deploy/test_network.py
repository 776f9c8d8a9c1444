"""Connections that the chart's network policies allow, evaluated as by the network of a cluster."""

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from tests.deploy import chart
from tests.deploy.chart import Rendering

pytestmark = pytest.mark.skipif(not chart.HELM_IS_HERE, reason="helm-python-sdk has no wheel for this machine")
OURS = ("web", "background", "beat", "migrate")
SOMEWHERE, METADATA = "203.0.113.7", ("169.254.169.254", "fd00:ec2::254", "fd20:ce::254")
DATABASE, BROKER, STORE, HTTPS = 5432, 6379, 443, 443
LABELS = {"app.kubernetes.io/name": "fedloom", "app.kubernetes.io/instance": chart.RELEASE}


def policy(rendering: Rendering, component: str) -> Mapping[str, Any]:
    """The policy that selects only these pods."""
    spec: Mapping[str, Any] = rendering.objects[f"policy-{component}.yaml"]["spec"]
    assert spec["podSelector"]["matchLabels"] == {**LABELS, "app.kubernetes.io/component": component}
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    return spec


def lets_out(spec: Mapping[str, Any], address: str, port: int) -> bool:
    """True if the policy allows a connection to this address outside of the cluster."""
    return any(
        any(holds(peer["ipBlock"], address) for peer in rule["to"] if "ipBlock" in peer)
        and any(port == one["port"] and one["protocol"] == "TCP" for one in rule["ports"])
        for rule in spec["egress"]
    )


def holds(block: Mapping[str, Any], address: str) -> bool:
    target = ip_address(address)
    within = [ip_network(network) for network in (block["cidr"], *block.get("except", ()))]
    return target in within[0] and not any(target in network for network in within[1:])


def ports_to(spec: Mapping[str, Any], labels: Mapping[str, str]) -> set[int]:
    """Ports at which the policy reaches pods with these labels in this namespace."""
    peer = {"podSelector": {"matchLabels": dict(labels)}}
    return {one["port"] for rule in spec["egress"] if peer in rule["to"] for one in rule.get("ports", ())}


class TestWaysOut:
    @pytest.mark.parametrize(
        ("component", "ports"),
        [
            ("web", {DATABASE, BROKER, STORE}),
            ("background", {DATABASE, BROKER, STORE, HTTPS}),
            ("beat", {DATABASE, BROKER}),
            ("migrate", {DATABASE}),
        ],
    )
    def test_pods_reach_the_servers_they_need_and_no_other_port(self, component: str, ports: set[int]) -> None:
        spec = policy(chart.as_it_is(), component)
        candidates = {22, 53, 80, 8000, 8080, 9000, DATABASE, BROKER, STORE, HTTPS}
        assert {port for port in candidates if lets_out(spec, SOMEWHERE, port)} == ports

    @pytest.mark.parametrize("component", OURS)
    def test_nobody_reaches_what_hands_out_a_machines_credentials(self, component: str) -> None:
        spec = policy(chart.as_it_is(), component)
        ports = {80, DATABASE, BROKER, STORE, HTTPS}
        assert [port for port in ports for address in METADATA if lets_out(spec, address, port)] == []

    @pytest.mark.parametrize("component", OURS)
    def test_names_are_asked_of_the_clusters_own_server(self, component: str) -> None:
        first = policy(chart.as_it_is(), component)["egress"][0]
        assert first["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}]
        assert {(one["protocol"], one["port"]) for one in first["ports"]} == {("UDP", 53), ("TCP", 53)}

    def test_servers_that_are_named_are_the_only_ones(self) -> None:
        web = policy(chart.with_all(), "web")
        assert ports_to(web, {"app": "postgres"}) == {DATABASE}
        assert ports_to(web, {"app": "redis"}) == {BROKER}
        assert lets_out(web, "10.1.2.3", 9000)
        assert not any(lets_out(web, SOMEWHERE, port) for port in (DATABASE, BROKER, STORE, 9000))

    def test_rules_of_the_operators_own_are_there(self) -> None:
        for component in OURS:
            rules = policy(chart.with_all(), component)["egress"]
            assert {"to": [{"podSelector": {"matchLabels": {"app": "collector"}}}]} in rules


class TestWaysIn:
    def test_the_web_is_reached_from_the_ingress_alone(self) -> None:
        (rule,) = policy(chart.as_it_is(), "web")["ingress"]
        assert rule == {
            "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}}],
            "ports": [{"protocol": "TCP", "port": "http"}],
        }

    @pytest.mark.parametrize("component", [name for name in OURS if name != "web"])
    def test_the_others_are_reached_by_nobody(self, component: str) -> None:
        assert policy(chart.as_it_is(), component)["ingress"] == []

    @pytest.mark.parametrize(("server", "app", "port"), [("database", "postgres", 5432), ("broker", "redis", 6379)])
    def test_database_and_broker_are_reached_from_our_pods_alone(self, server: str, app: str, port: int) -> None:
        spec = chart.with_all().objects[f"policy-{server}.yaml"]["spec"]
        assert spec == {
            "podSelector": {"matchLabels": {"app": app}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [{"podSelector": {"matchLabels": LABELS}}],
                    "ports": [{"protocol": "TCP", "port": port}],
                }
            ],
        }


def test_every_pod_has_a_policy_unless_there_are_to_be_none() -> None:
    components = {pod.removesuffix(".yaml") for pod in chart.as_it_is().pods}
    assert components == set(OURS)
    (without,) = chart.render({"networkPolicy": {"enabled": False}})
    assert [name for name in without.objects if name.startswith("policy")] == []
