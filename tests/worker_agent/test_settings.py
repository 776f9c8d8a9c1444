"""The settings file: relative folders are relative to it."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from worker_agent.coordinator_api.connection import open_http
from worker_agent.errors import ConfigurationError
from worker_agent.settings import FILE_VARIABLE, load_settings


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "node" / "models" / "encoder").mkdir(parents=True)
    file = tmp_path / "node" / "worker-agent.toml"
    file.write_text(
        """
folder = "data"
[models]
encoder = "models/encoder"
hub = "sentence-transformers/all-MiniLM-L6-v2"
[datasets.tickets]
path = "tickets.jsonl"
"""
    )
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    monkeypatch.chdir(tmp_path)
    return file


def test_relative_folders_are_taken_from_where_the_file_lies(written: Path) -> None:
    settings = load_settings()
    assert settings.folder == written.parent / "data"
    assert settings.models["encoder"] == str(written.parent / "models" / "encoder")
    assert settings.datasets["tickets"].path == written.parent / "tickets.jsonl"


def test_a_model_that_is_no_folder_there_stays_a_hubs_name(written: Path) -> None:
    assert load_settings().models["hub"] == "sentence-transformers/all-MiniLM-L6-v2"


def test_a_client_certificate_and_its_key_are_named_together(written: Path) -> None:
    with pytest.raises(ValidationError, match="set both client_certificate and client_key"):
        load_settings(client_certificate="agent.pem")
    settings = load_settings(client_certificate="agent.pem", client_key="agent-key.pem")
    assert settings.client_key == written.parent / "agent-key.pem"
    with pytest.raises(ConfigurationError, match=r"client_certificate, client_key: cannot be used: .*No such file"):
        open_http(settings, "https://127.0.0.1")
