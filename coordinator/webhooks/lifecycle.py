"""Which addresses a webhook may have, how a message is signed, and when it is tried again. Pure functions."""

import hashlib
import hmac
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address

LONGEST_PAUSE_SECONDS: Final = 3600.0
LONGEST_SILENCE_SECONDS: Final = 60.0
"""How long at most one failed connection keeps the webhook's other messages back."""
_GROWTH: Final = 3.0
_STEPS: Final = 32
# All that is given out as public. Python 3.11 also calls much of the rest global: site-local, translators to IPv4.
_PUBLIC_IPV6: Final = IPv6Network("2000::/3")
# What lies behind these cannot be seen from the address: translators to IPv4.
_TRANSLATED: Final = tuple(map(IPv6Network, ("2002::/16", "2001::/32")))


def fault_of_url(url: str, allow_private: bool) -> str | None:
    """Why nothing is sent to this URL, as far as the URL itself says; None if it may be."""
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
        return "must hold no user and no password; the signature says who sends"
    if parts.fragment:
        return "must have no fragment (#…)"
    address = _literal(host)
    if parts.scheme == "http" and host != "localhost" and (address is None or not address.is_loopback):
        return "must begin with https://"
    if host == "localhost" and not allow_private:
        return "is of this machine; the setting webhook_private_addresses would allow that"
    return None if address is None else fault_of_address(address, parts.scheme, allow_private)


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def fault_of_address(address: Address, scheme: str, allow_private: bool) -> str | None:
    """Why nothing is sent to this address; None if it may be. Link-local ones are never sent to."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    address = mapped or address
    if scheme == "http" and not address.is_loopback:
        return "leads to an address that is not of this machine: only https"
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        return "leads to what is not an address to send to"
    if allow_private:
        return None
    if not _is_public(address):
        return "leads to an address that is not public; the setting webhook_private_addresses would allow it"
    return None


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return address.is_global
    translated = any(address in network for network in _TRANSLATED)
    return address in _PUBLIC_IPV6 and address.is_global and not translated


def signature(secret: str, at: datetime, body: bytes) -> str:
    """The header `Fedloom-Signature`."""
    seconds = str(int(at.timestamp()))
    digest = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={seconds},v1={digest}"


def pause_seconds(attempts: int, first_seconds: float, share: float) -> float:
    """Pause after so many attempts: three times longer each time, up to an hour; `share` of it, in 0.5 to 1."""
    return share * min(LONGEST_PAUSE_SECONDS, first_seconds * _GROWTH ** min(attempts - 1, _STEPS))
