"""Secrets of the deployed services: placeholders are refused, and each secret has the least rights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from coordinator.settings import Settings
from tests.deploy import deployed
from tests.deploy.deployed import DEPLOY

SECRETS = {name for name in deployed.example("compose.env.example") if name.endswith("PASSWORD")}


def check_secrets(**variables: str) -> subprocess.CompletedProcess[str]:
    """Run secrets.sh as compose does."""
    return subprocess.run(
        ["/bin/sh", DEPLOY / "secrets.sh"], env={"PATH": os.environ["PATH"], **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


class TestCompose:
    def test_the_example_gives_none_and_nothing_starts_without(self) -> None:
        assert len(SECRETS) == 5
        assert {deployed.example("compose.env.example")[name] for name in SECRETS} == {""}
        text = (DEPLOY / "compose.yaml").read_text("utf-8")
        for name in SECRETS:
            assert text.count(f"${{{name}") == text.count(f"${{{name}:?see compose.env.example}}") > 0

    def test_the_servers_wait_until_each_was_looked_at(self) -> None:
        services = deployed.compose()["services"]
        assert services["secrets"]["environment"].keys() == SECRETS
        for server in ("postgres", "store"):
            assert services[server]["depends_on"] == {"secrets": {"condition": "service_completed_successfully"}}

    def test_a_placeholder_is_refused_by_its_name(self) -> None:
        process = check_secrets(
            STORE_PASSWORD="change-me", DATABASE_PASSWORD="change-me-too", POSTGRES_PASSWORD="a1b2"
        )
        assert process.returncode == 1
        assert "still change-me: DATABASE_PASSWORD STORE_PASSWORD." in process.stderr
        assert check_secrets(**dict.fromkeys(SECRETS, "4be1f6c2")).returncode == 0

    def test_the_superusers_are_known_to_those_alone_that_make_the_others(self) -> None:
        services = deployed.compose()["services"]
        holders = {
            secret: {name for name, service in services.items() if f"{{{secret}:" in json.dumps(service)}
            - {"secrets"}
            for secret in SECRETS
        }
        assert holders["POSTGRES_PASSWORD"] == {"postgres"}
        assert holders["DATABASE_OWNER_PASSWORD"] == {"postgres", "migrate"}
        assert holders["STORE_ROOT_PASSWORD"] == {"store", "store-bucket"}


class TestTheBucketsUser:
    def test_its_policy_is_about_the_one_bucket_and_what_the_coordinator_does_there(self) -> None:
        policy = json.loads((DEPLOY / "store/policy.json").read_text("utf-8"))
        bucket = deployed.compose()["services"]["web"]["environment"]["FEDLOOM_STORE_URL"].removeprefix("s3://")
        resources = {one for statement in policy["Statement"] for one in statement["Resource"]}
        assert resources == {f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"}
        actions = {one for statement in policy["Statement"] for one in statement["Action"]}
        assert {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"} <= actions
        assert [one for one in actions if "*" in one or "Policy" in one or "DeleteBucket" in one] == []

    def test_the_coordinator_is_that_user(self) -> None:
        environment = deployed.compose()["services"]["web"]["environment"]
        script = (DEPLOY / "store/bucket.sh").read_text("utf-8")
        assert f"mc admin user add store {environment['AWS_ACCESS_KEY_ID']} " in script
        assert subprocess.run(["/bin/sh", "-n", DEPLOY / "store/bucket.sh"], check=False).returncode == 0


class TestTheCoordinator:
    @pytest.mark.parametrize(
        ("variable", "value", "name"),
        [
            ("FEDLOOM_DATABASE_URL", "postgresql+psycopg://fedloom:change-me@127.0.0.1/fedloom", "database_url"),
            (
                "FEDLOOM_MIGRATION_DATABASE_URL",
                "postgresql://owner:change-me-too@127.0.0.1/x",
                "migration_database_url",
            ),
            ("FEDLOOM_BROKER_URL", "redis://:change%2Dme@127.0.0.1/0", "broker_url"),
            ("AWS_SECRET_ACCESS_KEY", "change-me", "AWS_SECRET_ACCESS_KEY"),
        ],
    )
    def test_a_placeholder_is_refused_by_its_name(
        self, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, name: str
    ) -> None:
        monkeypatch.setenv(variable, value)
        with pytest.raises(ValidationError) as validation:
            Settings()
        (fault,) = validation.value.errors()
        assert name in (*fault["loc"], fault["msg"].removeprefix("Value error, ").partition(":")[0])
        assert "still the example's (change-me)" in fault["msg"]
        assert "change%2Dme" not in str(validation.value)

    def test_nothing_starts_and_it_says_so_in_a_line_for_each_without_the_values(self, tmp_path: Path) -> None:
        wrong = {
            "FEDLOOM_DATA_FOLDER": str(tmp_path / "data"),
            "FEDLOOM_DATABASE_URL": "postgresql+psycopg://fedloom:change-me@127.0.0.1/fedloom",
            "FEDLOOM_WEB_THREADS": "s3cret",
        }
        process = subprocess.run(
            [sys.executable, "-m", "coordinator", "migrate"], env={**os.environ, **wrong},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert process.returncode == 1
        first, second = process.stderr.splitlines()
        assert first.startswith("error: database_url: ")
        assert second.startswith("error: web_threads: ")
        assert "s3cret" not in process.stderr
