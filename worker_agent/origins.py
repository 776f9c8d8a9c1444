"""The addresses this agent may speak to: the coordinator's own origin, and those that this node's owner listed."""

import time
from collections.abc import Iterable

import httpx

AVOIDED_SECONDS = 300.0
MOST_PORT = 65535


def origin_of(url: str | httpx.URL) -> str | None:
    """Scheme, host and, where it is not the scheme's own, port of an http or https URL; None for anything else."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        return None
    if parsed.scheme not in {"http", "https"} or not parsed.host or (parsed.port or 0) > MOST_PORT:
        return None
    port = "" if parsed.port is None else f":{parsed.port}"
    host = parsed.raw_host.decode("ascii").lower()
    return f"{parsed.scheme}://{f'[{host}]' if ':' in host else host}{port}"


class Origins:
    """Where transfers may go beside the coordinator. No name is resolved, and nothing is sent, to find out."""

    def __init__(self, own: httpx.URL, listed: Iterable[str]) -> None:
        self._own = own
        self._allowed = {origin_of(own), *listed} - {None}
        self._has_stores = len(self._allowed) > 1
        self._avoided_until = 0.0

    def use_stores(self) -> bool:
        """Whether a listed store is worth a try: there is one, and none failed a moment ago."""
        return self._has_stores and time.monotonic() >= self._avoided_until

    def avoid_stores(self) -> bool:
        """Let everything go through the coordinator for five minutes. False if it did so already."""
        used, self._avoided_until = self.use_stores(), time.monotonic() + AVOIDED_SECONDS
        return used

    def target(self, location: str) -> httpx.URL | None:
        """Where `location` leads, if this agent may speak to it; never from https to http."""
        try:
            url = self._own.join(location)
        except (httpx.InvalidURL, ValueError):
            return None
        if not location:
            return None
        downgraded = self._own.scheme == "https" and url.scheme != "https"
        return None if downgraded or url.userinfo or origin_of(url) not in self._allowed else url
