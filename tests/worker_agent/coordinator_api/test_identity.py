"""The worker's key and its record of the enrollment."""

import stat
from typing import Any

import jwt
import pytest

from worker_agent.coordinator_api.identity import (
    Identity,
    Tokens,
    WorkerRecord,
    adopt_next_key,
    load_identity,
    make_key,
    make_next_key,
    public_key,
    save_record,
)
from worker_agent.errors import ConfigurationError, NotEnrolled
from worker_agent.settings import AgentSettings

RECORD = WorkerRecord(
    url="http://127.0.0.1:1", worker_id="wkr_1", organization_id="org_1", organization_name="Clinic", name="node"
)


def test_the_private_key_can_be_read_by_its_owner_alone(settings: AgentSettings) -> None:
    make_key(settings.folder)
    mode = (settings.folder / "identity" / "key.pem").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_an_enrollment_that_broke_off_goes_on_with_its_key(settings: AgentSettings) -> None:
    assert public_key(make_key(settings.folder)) == public_key(make_key(settings.folder))


def test_what_was_saved_is_loaded(settings: AgentSettings) -> None:
    key = make_key(settings.folder)
    save_record(settings.folder, RECORD)
    identity = load_identity(settings.folder)
    assert (identity.record, public_key(identity.key)) == (RECORD, public_key(key))


def test_a_public_key_is_32_bytes_in_base64url(settings: AgentSettings) -> None:
    text = public_key(make_key(settings.folder))
    assert len(text) == 43
    assert set(text).isdisjoint("+/=")


def test_a_folder_without_a_worker_says_what_to_run(settings: AgentSettings) -> None:
    make_key(settings.folder)
    with pytest.raises(NotEnrolled, match="worker-agent enroll"):
        load_identity(settings.folder)


def test_a_key_that_others_can_read_is_refused(settings: AgentSettings) -> None:
    make_key(settings.folder)
    save_record(settings.folder, RECORD)
    (settings.folder / "identity" / "key.pem").chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_identity(settings.folder)


@pytest.mark.parametrize(("name", "reason"), [("key.pem", "not a private key"), ("worker.json", "is damaged")])
def test_a_damaged_file_is_named(settings: AgentSettings, name: str, reason: str) -> None:
    make_key(settings.folder)
    save_record(settings.folder, RECORD)
    (settings.folder / "identity" / name).write_text("rubbish")
    with pytest.raises(ConfigurationError, match=reason):
        load_identity(settings.folder)


def test_a_lost_key_is_named(settings: AgentSettings) -> None:
    make_key(settings.folder)
    save_record(settings.folder, RECORD)
    (settings.folder / "identity" / "key.pem").unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_identity(settings.folder)


def test_the_next_key_stands_beside_the_key_until_it_is_adopted(settings: AgentSettings) -> None:
    first, following = make_key(settings.folder), make_next_key(settings.folder)
    assert public_key(following) == public_key(make_next_key(settings.folder)) != public_key(first)
    assert public_key(make_key(settings.folder)) == public_key(first)
    adopt_next_key(settings.folder)
    assert public_key(make_key(settings.folder)) == public_key(following)
    mode = (settings.folder / "identity" / "key.pem").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    assert [file.name for file in (settings.folder / "identity").iterdir()] == ["key.pem"]


class TestTokens:
    @pytest.fixture
    def tokens(self, settings: AgentSettings) -> Tokens:
        return Tokens(Identity(RECORD, make_key(settings.folder)))

    def test_one_serves_for_half_of_its_time(self, tokens: Tokens) -> None:
        first = tokens.at(1_000_000.9)
        assert tokens.at(1_000_030.8) == first
        assert claims(tokens.at(1_000_031.0))["iat"] == 1_000_031

    def test_a_clock_that_is_set_back_makes_another(self, tokens: Tokens) -> None:
        tokens.at(1_000_000.0)
        assert claims(tokens.at(999_990.0))["iat"] == 999_990


def claims(token: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found
