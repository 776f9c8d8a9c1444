"""Webhook rules: allowed addresses, signatures, and pauses between attempts."""

import base64
import re
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_address

import pytest

from coordinator import events
from coordinator.clients import lifecycle as clients
from coordinator.webhooks.lifecycle import (
    fault_of_address,
    fault_of_url,
    new_secret,
    old_signature,
    pause_seconds,
    signature_headers,
    signing_key,
)

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.org",
        "https://hooks.example.org:8443/a?b=c",
        "https://93.184.216.34/x",
        "https://[2600::1]/",
    ],
)
def test_a_public_https_url_is_taken(url: str) -> None:
    assert fault_of_url(url, allow_private=False) is None


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("http://hooks.example.org", "must begin with https://"),
        ("ftp://hooks.example.org", "begins with https://"),
        ("https://", "begins with https://"),
        ("https://[::1", "is not a URL"),
        ("https://hooks.example.org:99999", "is not a URL"),
        ("https://user:word@hooks.example.org", "a user or password"),
        ("https://hooks.example.org/#top", "no fragment"),
        ("https://hööks.example.org", "must be ASCII"),
        ("https://hooks.example.org/a b", "must be ASCII"),
        ("http://127.0.0.1:8000", "not public"),
        ("http://localhost", "this machine"),
        ("https://localhost", "this machine"),
        ("https://10.0.0.1", "not public"),
        ("https://[::ffff:10.0.0.1]", "not public"),
        ("https://[fd00::1]", "not public"),
        ("https://169.254.169.254/latest/meta-data", "a link-local, multicast"),
    ],
)
def test_what_may_not_be_sent_to_is_refused_with_the_reason(url: str, fault: str) -> None:
    told = fault_of_url(url, allow_private=False)
    assert told is not None
    assert fault in told


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "http://localhost", "https://10.0.0.1", "https://localhost"]
)
def test_private_addresses_and_http_on_this_machine_are_taken_where_a_setting_allows_them(url: str) -> None:
    assert fault_of_url(url, allow_private=True) is None


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1", "http://hooks.example.org", "https://169.254.169.254", "https://0.0.0.0"]
)
def test_the_setting_does_not_allow_everything(url: str) -> None:
    assert fault_of_url(url, allow_private=True) is not None


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "255.255.255.255", "224.0.0.1",
        "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
        "2001::1", "::7f00:1", "fec0::1", "::ffff:0:a00:1", "5f00::1", "64:ff9b:1::1",
    ],
)  # fmt: skip
def test_no_address_that_is_not_public_is_sent_to(address: str) -> None:
    assert fault_of_address(ip_address(address), "https", allow_private=False) is not None


def test_plain_http_goes_to_this_machine_alone() -> None:
    assert fault_of_address(ip_address("127.0.0.1"), "http", allow_private=True) is None
    assert fault_of_address(ip_address("93.184.216.34"), "http", allow_private=True) is not None


class TestSignatures:
    def test_the_example_of_the_specification_has_its_signature(self) -> None:
        headers = signature_headers(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            datetime.fromtimestamp(1614265330, UTC),
            '{"test": 2432232314}',
        )
        del headers["Fedloom-Signature"]
        assert headers == {
            "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "webhook-timestamp": "1614265330",
            "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        }

    @pytest.mark.parametrize("at", [AT, AT.astimezone(timezone(timedelta(hours=9)))])
    @pytest.mark.parametrize(
        "secret",
        [
            "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
            "flw_000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
        ],
    )
    def test_secrets_of_both_forms_sign_as_openssl_does(self, secret: str, at: datetime) -> None:
        """printf 'dlv_1.1767323045.{"a":1}' | openssl dgst -sha256 -mac HMAC -macopt hexkey:00…1f -binary | base64"""
        headers = signature_headers(secret, "dlv_1", at, '{"a":1}')
        assert headers["webhook-signature"] == "v1,3worP05DKhLJ5dQyjBoVpgIxPJxDk2BZwN6TmbKbUDY="
        assert headers["webhook-timestamp"] == "1767323045"

    def test_the_old_header_has_the_signature_that_openssl_computes(self) -> None:
        """printf '1767323045.{"a":1}' | openssl dgst -sha256 -hmac flw_secret"""
        expected = "t=1767323045,v1=78cf6783763289d3c6c0eead6277a56b67112950b3360e49c7211ed48834a4e7"
        assert old_signature("flw_secret", AT, b'{"a":1}') == expected

    def test_a_new_secret_is_a_random_key_of_32_bytes(self) -> None:
        secret = new_secret()
        assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", secret)
        assert signing_key(secret) == base64.b64decode(secret[6:])
        assert new_secret() != secret


def test_pauses_grow_threefold_up_to_an_hour() -> None:
    pauses = [pause_seconds(attempts, 10.0, 1.0) for attempts in (1, 2, 3, 4, 5, 6, 7, 1000)]
    assert pauses == [10.0, 30.0, 90.0, 270.0, 810.0, 2430.0, 3600.0, 3600.0]
    assert pause_seconds(2, 10.0, 0.5) == 15.0


def test_a_webhook_tells_what_may_be_read() -> None:
    assert events.READERS == clients.MEMBER


def test_filters_are_of_a_type_a_subject_or_everything() -> None:
    assert events.matches_filters(["round.closed"], "round.closed")
    assert events.matches_filters(["job.failed", "round.*"], "round.closed")
    assert events.matches_filters(["*"], "round.closed")
    assert not events.matches_filters(["round.failed", "job.*"], "round.closed")
