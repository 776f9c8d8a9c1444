"""`coordinator verify`: a downloaded adapter checked against its provenance, with repeated aggregations."""

import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from coordinator.__main__ import app
from coordinator.db.sessions import reading, writing
from coordinator.models import Hold, Round
from coordinator.settings import get_settings
from coordinator.telemetry import logs
from federated import registry
from federated.payloads.payload import Payload
from federated.protocol import Capabilities, DatasetFacts
from tests.support.algorithms import installed
from tests.support.bad_texts import SHOWN
from tests.support.federation_rig import DATASET, FederationRig
from tests.support.service import forget_settings

COMMAND = """
from coordinator.__main__ import main
from tests.support.algorithms import installed
with installed():
    main()
"""


def verify(adapter: Path, *options: str) -> Result:
    """The command, in this process; the web process beside it writes its log to `stderr` too."""
    try:
        return CliRunner().invoke(app, ["verify", str(adapter), *options])
    finally:
        logs.configure("json", "tests")


def downloaded(rig: FederationRig, folder: Path) -> Path:
    """The newest adapter, unpacked."""
    zipfile.ZipFile(io.BytesIO(archive(rig))).extractall(folder)
    return folder


def archive(rig: FederationRig) -> bytes:
    answer = rig.owner.owner.get(rig.path("adapter"))
    answer.raise_for_status()
    return answer.content


def noise(seed: int) -> Callable[[Payload], Payload]:
    """Makes updates whose sums do round, and of which no two are the same; positive, as `phased` wants them."""
    generator = torch.Generator().manual_seed(seed)

    def update(instruction: Payload) -> Payload:
        expects = instruction.facts["expects"]
        return Payload({name: torch.rand(tuple(row["shape"]), generator=generator) for name, row in expects.items()})

    return update


def artifact(digest: str) -> Path:
    return get_settings().data_folder / "artifacts" / "sha256" / digest.removeprefix("sha256:")


class TestFiles:
    def test_a_zip_and_a_folder_as_downloaded_hold(self, rig: FederationRig, tmp_path: Path) -> None:
        rig.running(rounds=2)
        rig.play(2)
        file = tmp_path / "adapter.zip"
        file.write_bytes(archive(rig))
        for adapter in (file, downloaded(rig, tmp_path / "adapter")):
            result = verify(adapter)
            assert result.exit_code == 0, result.output
            assert result.stdout.splitlines() == [
                "files: 3 have the SHA-256 that the provenance names",
                "signature of the coordinator: not checked without its public key (--key)",
                "signatures: 4 updates, signed with 2 keys",
                f"chain: 2 rounds of {rig.federation_id}, up to " + rig.get("adapter", "provenance.json")["digest"],
            ]

    @pytest.mark.parametrize(
        ("spoil", "told"),
        [
            (
                lambda folder: flip(folder / "adapter_model.safetensors"),
                "file adapter_model.safetensors: has not the",
            ),
            (lambda folder: flip(folder / "README.md"), "file README.md: has not the SHA-256"),
            (lambda folder: (folder / "README.md").unlink(), "file README.md: is missing"),
            (lambda folder: (folder / "model.bin").write_bytes(b""), "file model.bin: is not in the provenance"),
            (lambda folder: (folder / "provenance.json").unlink(), "provenance.json: is missing"),
            (lambda folder: rewrite(folder, '"weight": 10.0', '"weight": 11.0'), "client 0: the signature is not"),
        ],
    )
    def test_what_was_changed_is_named(
        self, rig: FederationRig, tmp_path: Path, spoil: Callable[[Path], object], told: str
    ) -> None:
        rig.running(rounds=1)
        rig.play(1)
        folder = downloaded(rig, tmp_path / "adapter")
        spoil(folder)
        result = verify(folder)
        assert result.exit_code == 1
        assert f"broken: {told}" in result.output.replace("train round 1, update of ", "")

    def test_names_in_an_adapter_are_shown_as_text(self, rig: FederationRig, tmp_path: Path) -> None:
        rig.running(rounds=1)
        rig.play(1)
        folder = downloaded(rig, tmp_path / "adapter")
        for text in SHOWN.values():
            name = text[:100].replace("/", "_").replace("\ud800", "?")
            (folder / name).touch()
            result = verify(folder)
            lines = [
                line for line in result.output.splitlines() if not line.startswith("{")
            ]  # those are the web log's
            assert (result.exit_code, len(lines)) == (1, 1), ascii(result.output)
            assert lines[0].startswith("broken: file ")
            assert lines[0].isprintable()
            (folder / name).unlink()

    def test_what_is_no_adapter_is_named(self, data_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "adapter.zip").write_bytes(b"something else")
        assert "broken: adapter.zip: is neither a folder nor a whole zip" in verify(tmp_path / "adapter.zip").output


def flip(file: Path) -> None:
    """Changes the last bit."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def rewrite(folder: Path, old: str, new: str) -> None:
    text = (folder / "provenance.json").read_text()
    assert old in text
    (folder / "provenance.json").write_text(text.replace(old, new, 1))


class TestAgain:
    def play(
        self,
        rig: FederationRig,
        rounds: int,
        algorithm: str = "fedavg",
        *,
        rounds_otherwise: bool = False,
        **changes: object,
    ) -> None:
        config = {"rounds_otherwise": rounds_otherwise} if algorithm == "phased" else {"local_steps": 1}
        rig.create(rounds=rounds, algorithm=algorithm, config=config, **changes)
        revision = registry.algorithm(algorithm).revision
        able = Capabilities(algorithms={algorithm: revision}, datasets=(DatasetFacts(name=DATASET),))
        for seed in range(2):
            rig.join(rig.actor(make_update=noise(seed), capabilities=able))
        rig.post("start")
        assert [actor.work() for actor in rig.actors] == ["describe"] * 2
        rig.settle()
        rig.play(rounds)

    @pytest.mark.parametrize("algorithm", ["fedavg", "flexlora"])
    def test_the_same_environment_makes_the_same_bytes(
        self, rig: FederationRig, tmp_path: Path, algorithm: str
    ) -> None:
        self.play(rig, 2, algorithm)
        result = verify(downloaded(rig, tmp_path / "adapter"), "--artifacts")
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[4:] == [
            f"aggregated again: train round {number}, same bytes" for number in (1, 2)
        ]

    def test_a_round_is_aggregated_with_the_notes_that_it_used(self, rig: FederationRig, tmp_path: Path) -> None:
        with installed():
            self.play(rig, 1, "phased")
            result = verify(downloaded(rig, tmp_path / "adapter"), "--artifacts")
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[4:] == [
            "aggregated again: prepare round 1, same bytes",
            "aggregated again: train round 1, same bytes",
        ]

    @pytest.mark.sqlite  # reaches into the store's folder
    def test_only_what_is_kept_is_aggregated_again(self, rig: FederationRig, tmp_path: Path) -> None:
        self.play(rig, 2)
        first, _ = rig.get("adapter", "provenance.json")["rounds"]
        artifact(first["updates"][0]["digest"]).unlink()
        folder = downloaded(rig, tmp_path / "adapter")
        assert verify(folder, "--artifacts").stdout.splitlines()[4:] == [
            "aggregated again: train round 2, same bytes"
        ]
        artifact(first["state_digest"]).unlink()
        assert "aggregated again: nothing, since" in verify(folder, "--artifacts").output

    @pytest.mark.sqlite  # reaches into the store's folder
    def test_a_damaged_update_is_named(self, rig: FederationRig, tmp_path: Path) -> None:
        self.play(rig, 1)
        (told,) = rig.get("adapter", "provenance.json")["rounds"]
        digest = told["updates"][0]["digest"]
        flip(artifact(digest))
        result = verify(downloaded(rig, tmp_path / "adapter"), "--artifacts")
        assert result.exit_code == 1
        assert f"broken: train round 1: The stored bytes of {digest} are lost or damaged." in result.output

    def test_in_another_environment_the_largest_difference_is_held_against_the_bound(
        self, rig: FederationRig, tmp_path: Path
    ) -> None:
        with installed():
            self.play(rig, 1, "phased", rounds_otherwise=True)
        done = elsewhere(downloaded(rig, tmp_path / "adapter"))
        assert done.returncode == 0, done.stdout + done.stderr
        line = done.stdout.splitlines()[-1]
        assert line.startswith(
            "aggregated again: train round 1, in another environment, largest relative difference "
        )
        assert line.endswith(", at most 1e-05 is allowed")

    def test_another_result_is_told_in_this_environment_and_in_another(
        self, rig: FederationRig, tmp_path: Path
    ) -> None:
        with installed():
            self.play(rig, 1, "phased")
            folder = downloaded(rig, tmp_path / "adapter")
            with writing() as session:
                row = session.query(Round).where(Round.kind == "train").one()
                row.notes = dict.fromkeys(row.notes, next(iter(row.notes.values())))
            result = verify(folder, "--artifacts")
        assert result.exit_code == 1
        assert "broken: train round 1: aggregated again in the same environment it has other bytes" in result.output
        done = elsewhere(folder)
        assert done.returncode == 1
        assert "broken: train round 1: aggregated again it differs, largest relative difference" in done.stderr
        assert ", at most 1e-05 is allowed" in done.stderr

    def test_a_chain_that_holds_but_was_never_recorded_here_is_named(
        self, rig: FederationRig, tmp_path: Path
    ) -> None:
        self.play(rig, 1)
        folder = downloaded(rig, tmp_path / "adapter")
        with writing() as session:
            session.query(Round).one().not_reproducible = ["retry"]
        result = verify(folder, "--artifacts")
        assert result.exit_code == 1
        assert "broken: train round 1: is not what this coordinator recorded" in result.output

    def test_another_coordinator_says_so(self, rig: FederationRig, tmp_path: Path) -> None:
        self.play(rig, 1)
        folder = downloaded(rig, tmp_path / "adapter")
        rig.owner.owner.delete(rig.path()).raise_for_status()
        assert f"broken: federation {rig.federation_id}: this coordinator" in verify(folder, "--artifacts").output

    @pytest.mark.sqlite
    def test_a_folder_without_a_database_is_named(self, rig: FederationRig, tmp_path: Path) -> None:
        self.play(rig, 1)
        folder = downloaded(rig, tmp_path / "adapter")
        forget_settings()
        result = verify(folder, "--artifacts", "--data", str(tmp_path / "nowhere"))
        assert "broken: the database: is not here" in result.output

    def test_notes_are_kept_as_long_as_updates(self, rig: FederationRig) -> None:
        with installed():
            self.play(rig, 3, "phased", retention={"keep_updates_rounds": 1, "keep_states_rounds": 9})
        with reading() as session:
            holders = {hold.holder for hold in session.query(Hold).where(Hold.part == "note")}
            rounds = {row.number: row.id in holders for row in session.query(Round).where(Round.kind == "train")}
        assert rounds == {1: False, 2: False, 3: True}


def elsewhere(folder: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process whose torch uses none of the CPU's wide instructions."""
    environment = {
        **os.environ,
        "ATEN_CPU_CAPABILITY": "default",
        "FEDLOOM_AGGREGATION_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", COMMAND, "verify", str(folder), "--artifacts"],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
