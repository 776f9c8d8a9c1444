"""Delivery of one message: checks of certificate, deadline and address."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from coordinator.db.sessions import utcnow
from coordinator.webhooks import sender
from coordinator.webhooks.resolver import Resolver, Row
from coordinator.webhooks.sender import Outcome
from tests.support.receiver import receiving

SECONDS = 30.0


def send(url: str, seconds: float = SECONDS, allow_private: bool = True, resolver: Resolver | None = None) -> Outcome:
    given = {} if resolver is None else {"resolver": resolver}
    return sender.send(url, {"Fedloom-Event": "round.closed"}, b"{}", seconds, allow_private, **given)


def certificate(folder: Path, *names: x509.GeneralName) -> tuple[Path, ssl.SSLContext]:
    """A certificate that vouches for itself, of a server with these names."""
    key, now = Ed25519PrivateKey.generate(), utcnow()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "receiver")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, None)
    )
    file = folder / "receiver.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(made.public_bytes(Encoding.PEM) + private)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return file, server


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Whom the sender trusts is read anew, now and afterwards."""
    sender.tls_context.cache_clear()
    yield monkeypatch
    sender.tls_context.cache_clear()


class TestTls:
    def test_a_receiver_that_nobody_trusts_gets_nothing(self, tmp_path: Path, authority: pytest.MonkeyPatch) -> None:
        _, tls = certificate(tmp_path, x509.DNSName("localhost"))
        with receiving(tls=tls) as receiver:
            outcome = send(receiver.url.replace("127.0.0.1", "localhost"))
        assert (outcome.status, receiver.messages) == (None, [])
        assert "CERTIFICATE_VERIFY_FAILED" in str(outcome.error)

    def test_one_that_is_trusted_gets_it_by_its_name(self, tmp_path: Path, authority: pytest.MonkeyPatch) -> None:
        file, tls = certificate(tmp_path, x509.DNSName("localhost"))
        authority.setenv("SSL_CERT_FILE", str(file))
        with receiving(tls=tls) as receiver:
            url = receiver.url.replace("127.0.0.1", "localhost")
            outcome = send(url + "/a")
        assert outcome == Outcome(204, None)
        assert receiver.messages[0].headers["Host"] == url.removeprefix("https://")

    def test_one_with_anothers_certificate_gets_nothing(self, tmp_path: Path, authority: pytest.MonkeyPatch) -> None:
        file, tls = certificate(tmp_path, x509.DNSName("elsewhere.example.org"), x509.IPAddress(ip_address("::1")))
        authority.setenv("SSL_CERT_FILE", str(file))
        with receiving(tls=tls) as receiver:
            outcome = send(receiver.url)
        assert (outcome.status, receiver.messages) == (None, [])
        assert "CERTIFICATE_VERIFY_FAILED" in str(outcome.error)


@contextmanager
def dripping() -> Iterator[str]:
    """A server that answers a byte now and then, and never to the end."""
    ended = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        connection, _ = listening.accept()
        with connection:
            while not ended.wait(0.02):
                try:
                    connection.sendall(b"H")
                except OSError:  # the sender has gone
                    return

    thread = threading.Thread(target=drip, name="dripping")
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        ended.set()
        thread.join()
        listening.close()


class TestLimits:
    def test_who_answers_in_drops_is_left_when_the_time_is_over(self) -> None:
        with dripping() as url:
            outcome = send(url, seconds=0.5)
        assert outcome == Outcome(None, "not answered in time") or "timed out" in str(outcome.error)

    def test_a_name_that_leads_to_a_private_address_is_not_connected_to(self) -> None:
        with receiving() as receiver:
            outcome = send(receiver.url.replace("127.0.0.1", "localhost"), allow_private=False)
        assert (outcome.status, receiver.messages) == (None, [])
        assert "is not public" in str(outcome.error)

    @pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example.org"])
    def test_a_name_that_nobody_can_have_is_a_failure_with_a_reason(self, host: str) -> None:
        outcome = send(f"https://{host}/")
        assert outcome.status is None
        assert outcome.error

    def test_proxies_of_the_environment_are_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with receiving() as proxy, receiving() as receiver:
            for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
                monkeypatch.setenv(name, proxy.url)
            outcome = send(receiver.url)
        assert (outcome, len(receiver.messages), proxy.messages) == (Outcome(204, None), 1, [])


class NameServer:
    """Answers with this machine's address, once it is told to answer at all; `asked` for which names."""

    def __init__(self, answers: bool = True, address: str = "127.0.0.1") -> None:
        self.asked: list[str] = []
        self.answering = threading.Event()
        self._address = address
        if answers:
            self.answering.set()

    def look_up(self, host: str, port: int) -> Sequence[Row]:
        self.asked.append(host)
        self.answering.wait(SECONDS)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self._address, port))] * 2


class TestResolution:
    def test_a_name_server_that_does_not_answer_is_left_when_the_time_is_over(self) -> None:
        silent = NameServer(answers=False)
        began = time.monotonic()
        outcome = send("https://hooks.example.org/", 0.3, resolver=Resolver(silent.look_up))
        assert 0.3 <= time.monotonic() - began < SECONDS / 2
        assert outcome == Outcome(None, "the name was not resolved in time")
        assert silent.asked == ["hooks.example.org"]
        silent.answering.set()

    def test_look_ups_that_nobody_waits_for_are_bounded(self) -> None:
        silent = NameServer(answers=False)
        resolver = Resolver(silent.look_up, most_at_once=1)
        for _ in range(3):
            assert send("https://hooks.example.org/", 0.1, resolver=resolver).error
        assert len(silent.asked) == 1
        silent.answering.set()
        assert resolver.addresses("hooks.example.org", 443, SECONDS) == ["127.0.0.1"]
        assert resolver.addresses("hooks.example.org", 443, SECONDS) == ["127.0.0.1"]

    def test_the_connection_is_made_to_the_address_that_was_looked_at(self) -> None:
        names = NameServer()
        with receiving() as receiver:
            url = receiver.url.replace("127.0.0.1", "hooks.example.org")
            assert send(url, resolver=Resolver(names.look_up)) == Outcome(204, None)
        assert receiver.messages[0].headers["Host"] == url.removeprefix("http://")
        assert names.asked == ["hooks.example.org"]

    def test_an_address_that_is_not_public_is_refused_whoever_names_it(self) -> None:
        names = NameServer(address="fec0::1")
        outcome = send("https://hooks.example.org/", allow_private=False, resolver=Resolver(names.look_up))
        assert "is not public" in str(outcome.error)

    def test_a_name_without_an_address_is_a_failure_of_that_kind(self) -> None:
        def look_up(host: str, port: int) -> Sequence[Row]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        outcome = send("https://hooks.example.org/", resolver=Resolver(look_up))
        assert outcome == Outcome(None, "the name has no address")
