"""Origins that this agent may contact: the coordinator's own and those that the node's owner listed."""

import time
from collections.abc import Iterable

import httpx

AVOIDED_SECONDS = 300.0
MAX_PORT = 65535


def origin_of(url: str | httpx.URL) -> str | None:
    """Scheme, host and non-default port of an http or https URL; None for anything else."""
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        return None
    if parts.scheme not in {"http", "https"} or not parts.host or (parts.port or 0) > MAX_PORT:
        return None
    port = "" if parts.port is None else f":{parts.port}"
    host = parts.raw_host.decode("ascii").lower()
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}"


def bare_origin(url: str) -> str | None:
    """The origin of a URL without user, path and query; None for any other URL."""
    origin = origin_of(url)
    if origin is None:
        return None
    parts = httpx.URL(url)
    return origin if parts.path == "/" and not (parts.userinfo or parts.query or parts.fragment) else None


class Origins:
    """Origins that transfers may use besides the coordinator. The checks resolve no name and send nothing."""

    def __init__(self, own: httpx.URL, stores: Iterable[str]) -> None:
        self._own = own
        self._origins = {origin_of(own), *stores} - {None}
        self._has_stores = len(self._origins) > 1
        self._avoided_until = 0.0

    def use_stores(self) -> bool:
        """Whether to use a listed store: there is one, and none failed recently."""
        return self._has_stores and time.monotonic() >= self._avoided_until

    def avoid_stores(self) -> bool:
        """Send everything through the coordinator for five minutes. False if that was already so."""
        before, self._avoided_until = self.use_stores(), time.monotonic() + AVOIDED_SECONDS
        return before

    def target(self, location: str) -> httpx.URL | None:
        """The URL of `location` if this agent may contact it, or None. Never from https to http."""
        try:
            url = self._own.join(location)
        except (httpx.InvalidURL, ValueError):
            return None
        if not location:
            return None
        to_plain_http = self._own.scheme == "https" and url.scheme != "https"
        return None if to_plain_http or url.userinfo or origin_of(url) not in self._origins else url
