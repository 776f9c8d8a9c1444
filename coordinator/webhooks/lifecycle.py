"""Webhook rules: allowed addresses, secrets and signatures, and the pause between attempts."""

import base64
import hashlib
import hmac
import secrets
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import urlsplit

from standardwebhooks import Webhook as StandardWebhook

Address = IPv4Address | IPv6Address

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - a prefix
OLD_SECRET_PREFIX: Final = "flw_"  # noqa: S105 - a prefix
"""Prefix of the secrets of release 0.1, before 64 hexadecimal digits."""
_SECRET_BYTES: Final = 32
LONGEST_PAUSE_SECONDS: Final = 3600.0
LONGEST_SILENCE_SECONDS: Final = 60.0
"""Longest pause of a webhook's other deliveries after a connection failure."""
_GROWTH: Final = 3.0
_STEPS: Final = 32
# All public IPv6 addresses (global unicast). Python 3.11 calls others global too, such as site-local and NAT64.
_PUBLIC_IPV6: Final = IPv6Network("2000::/3")
# 6to4 and Teredo tunnels to IPv4: the address does not show the real target.
_TRANSITION_NETWORKS: Final = tuple(map(IPv6Network, ("2002::/16", "2001::/32")))


def fault_of_url(url: str, allow_private: bool) -> str | None:
    """The reason for refusing this URL, judged by its text alone; None if it is allowed."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"is not a URL: {error}"
    if parts.scheme not in ("http", "https") or not host:
        return "must be a URL that begins with https://"
    if not (url.isascii() and url.isprintable()) or " " in url:
        return "must be ASCII without spaces; write other characters as percent-encoding and punycode"
    if parts.username is not None or parts.password is not None:
        return "must not contain a user or password; messages are authenticated by their signature"
    if parts.fragment:
        return "must have no fragment (#…)"
    address = _parse_literal(host)
    if parts.scheme == "http" and host != "localhost" and (address is None or not address.is_loopback):
        return "must begin with https://"
    if host == "localhost" and not allow_private:
        return "is this machine; the setting webhook_private_addresses allows it"
    return None if address is None else fault_of_address(address, parts.scheme, allow_private)


def _parse_literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def fault_of_address(address: Address, scheme: str, allow_private: bool) -> str | None:
    """The reason for refusing this address; None if it is allowed. Link-local addresses are always refused."""
    ipv4_address = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    address = ipv4_address or address
    if scheme == "http" and not address.is_loopback:
        return "leads to an address outside this machine, which needs https"
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        return "leads to a link-local, multicast or unspecified address"
    if allow_private:
        return None
    if not _is_public(address):
        return "leads to an address that is not public; the setting webhook_private_addresses allows it"
    return None


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return address.is_global
    is_transition = any(address in network for network in _TRANSITION_NETWORKS)
    return address in _PUBLIC_IPV6 and address.is_global and not is_transition


def new_secret() -> str:
    """A random secret in the form of Standard Webhooks, `whsec_` and base64 of the key."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signing_key(secret: str) -> bytes:
    """The HMAC key of a stored secret, also of one from release 0.1, whose hexadecimal digits are the key."""
    if secret.startswith(OLD_SECRET_PREFIX):
        return bytes.fromhex(secret.removeprefix(OLD_SECRET_PREFIX))
    return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)


def signature_headers(secret: str, message_id: str, at: datetime, body: str) -> dict[str, str]:
    """Headers that identify and sign a message by Standard Webhooks 1.0, and the signature of release 0.1."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": StandardWebhook(signing_key(secret)).sign(message_id, at.astimezone(UTC), body),
        "Fedloom-Signature": old_signature(secret, at, body.encode()),
    }


def old_signature(secret: str, at: datetime, body: bytes) -> str:
    """Value of the deprecated header `Fedloom-Signature`. Its HMAC key is the text of the secret."""
    seconds = str(int(at.timestamp()))
    digest = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={seconds},v1={digest}"


def pause_seconds(attempts: int, first_seconds: float, share: float) -> float:
    """Pause after so many attempts: tripled each time, up to an hour, times `share` (0.5 to 1)."""
    return share * min(LONGEST_PAUSE_SECONDS, first_seconds * _GROWTH ** min(attempts - 1, _STEPS))
