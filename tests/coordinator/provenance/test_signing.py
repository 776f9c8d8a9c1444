"""The coordinator's signatures of adapters, verified with the public model-signing tool."""

import hashlib
import io
import json
import subprocess
import sys
import time
import zipfile
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from model_signing import hashing
from model_signing import signing as model_signing_api
from typer.testing import CliRunner, Result

from coordinator.__main__ import app
from coordinator.provenance import signing
from coordinator.telemetry import logs
from tests.support.federation_rig import FederationRig
from tests.support.places import private_pem
from tests.support.service import Service, forget_settings, serving


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key, outside the data folder."""
    file = tmp_path / "coordinator.pem"
    file.write_bytes(private_pem(ec.generate_private_key(ec.SECP256R1())))
    return file


@pytest.fixture
def service(data_folder: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A web process of a coordinator that was given this key."""
    monkeypatch.setenv("FEDLOOM_SIGNING_KEY", str(key))
    monkeypatch.setenv("FEDLOOM_CLAIM_SECONDS", "1")
    forget_settings()
    with serving() as running:
        yield running


@pytest.fixture
def public(service: Service, tmp_path: Path) -> Path:
    """The public key, as the command prints it."""
    result = command("signing-key")
    assert result.exit_code == 0, result.output
    file = tmp_path / "public.pem"
    file.write_text(result.stdout)
    return file


@pytest.fixture
def adapter(rig: FederationRig, tmp_path: Path) -> Path:
    """A downloaded adapter, unpacked."""
    rig.running(rounds=1)
    rig.play(1)
    answer = rig.owner.owner.get(rig.path("adapter"))
    answer.raise_for_status()
    zipfile.ZipFile(io.BytesIO(answer.content)).extractall(tmp_path / "adapter")
    (tmp_path / "adapter.zip").write_bytes(answer.content)
    return tmp_path / "adapter"


def command(*arguments: str) -> Result:
    try:
        return CliRunner().invoke(app, list(arguments))
    finally:
        logs.configure("json", "tests")


def model_signing(adapter: Path, public: Path) -> subprocess.CompletedProcess[str]:
    """The tool that does not know us."""
    tool = [sys.executable, "-m", "model_signing", "verify", "key", str(adapter)]
    options = ["--signature", str(adapter / signing.FILE), "--public_key", str(public)]
    return subprocess.run([*tool, *options], capture_output=True, text=True, check=False, timeout=120)


def flip(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])


class TestAnAdapter:
    def test_holds_under_the_public_key_until_a_bit_is_changed(
        self, rig: FederationRig, adapter: Path, public: Path
    ) -> None:
        assert rig.owner.owner.get(rig.path("adapter", signing.FILE)).content == (
            (adapter / signing.FILE).read_bytes()
        )
        told = model_signing(adapter, public)
        assert told.returncode == 0, told.stdout + told.stderr
        for folder in (adapter, adapter.with_suffix(".zip")):
            result = command("verify", str(folder), "--key", str(public))
            assert result.exit_code == 0, result.output
            assert result.stdout.splitlines()[1] == "signature of the coordinator: valid under public.pem"
        flip(adapter / "provenance.json")
        assert model_signing(adapter, public).returncode != 0

    def test_is_told_to_be_another_one(self, adapter: Path, public: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.pem"
        pem = (
            ec.generate_private_key(ec.SECP256R1())
            .public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        other.write_bytes(pem)
        assert "broken: model.sig: is not valid under other.pem" in self.told(adapter, other)
        (adapter / "README.md").write_text("changed")
        assert "broken: file README.md" in self.told(adapter, public)

    def test_without_its_signature_is_told(self, adapter: Path, public: Path) -> None:
        result = command("verify", str(adapter))
        assert (
            result.stdout.splitlines()[1]
            == "signature of the coordinator: not checked without its public key (--key)"
        )
        (adapter / signing.FILE).write_text("{}")
        assert "broken: model.sig: is not valid under public.pem" in self.told(adapter, public)
        (adapter / signing.FILE).unlink()
        assert "broken: model.sig: is missing" in self.told(adapter, public)
        assert command("verify", str(adapter)).stdout.splitlines()[1] == "signature of the coordinator: there is none"

    def told(self, adapter: Path, public: Path) -> str:
        result = command("verify", str(adapter), "--key", str(public))
        assert result.exit_code == 1
        return result.output


class TestStatement:
    def test_it_is_the_one_that_the_package_computes_from_the_files(
        self, data_folder: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FEDLOOM_SIGNING_KEY", str(key))
        forget_settings()
        adapter, digests = tmp_path / "fed_1-round-2", {}
        adapter.mkdir()
        for name in ("provenance.json", "README.md", "adapter_model.safetensors"):
            (adapter / name).write_text(name)
            digests[name] = f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
        text = signing.sign(adapter.name, digests)
        assert text is not None
        config = hashing.Config().set_ignored_paths(paths=[signing.FILE], ignore_git_paths=False)
        signer = model_signing_api.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(config)
        signer.sign(adapter, tmp_path / "other.sig")
        assert statement(text) == statement((tmp_path / "other.sig").read_text())
        (resource,) = (one for one in statement(text)["predicate"]["resources"] if one["name"] == "README.md")
        assert f"sha256:{resource['digest']}" == digests["README.md"]


def statement(signature: str) -> dict[str, Any]:
    """The in-toto statement in a signature."""
    content: dict[str, Any] = json.loads(b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
    return content


class TestTheKey:
    def test_that_cannot_be_used_holds_the_round_up_until_it_is_mended(self, rig: FederationRig, key: Path) -> None:
        good = key.read_bytes()
        key.write_bytes(private_pem(ed25519.Ed25519PrivateKey.generate()))
        for actor in rig.running(rounds=1):
            actor.work()
        rig.settle()
        (waiting,) = rig.rounds()
        assert (waiting["state"], waiting["reason"]) == ("aggregating", "signing_key_unusable")
        key.write_bytes(good)
        until = time.monotonic() + 60
        while rig.show()["state"] != "completed" and time.monotonic() < until:
            rig.reconcile()
        assert rig.owner.owner.get(rig.path("adapter", signing.FILE)).status_code == 200

    @pytest.mark.sqlite  # of one machine
    def test_of_a_machine_of_its_own_is_made_and_kept(
        self, data_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = command("signing-key", "--data", str(data_folder))
        assert first.stdout.startswith("-----BEGIN PUBLIC KEY-----")
        file = data_folder / "signing-key.pem"
        assert file.stat().st_mode & 0o777 == 0o600
        signing._key.cache_clear()
        assert command("signing-key", "--data", str(data_folder)).stdout == first.stdout

    def test_of_several_machines_is_given_or_adapters_are_not_signed(
        self, data_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("FEDLOOM_BROKER_URL", "redis://127.0.0.1:1/0")
        monkeypatch.delenv("FEDLOOM_SIGNING_KEY", raising=False)
        result = command("signing-key")
        assert (result.exit_code, result.output) == (
            1,
            "Adapters are not signed: the setting signing_key names no key.\n",
        )
        monkeypatch.setenv("FEDLOOM_SIGNING_KEY", str(tmp_path / "nowhere.pem"))
        result = command("signing-key")
        assert result.exit_code == 1
        assert "The signing key nowhere.pem cannot be used: No such file" in result.output
