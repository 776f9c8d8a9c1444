"""Delivery of one message: only to allowed addresses, before a deadline, without redirects.

The name is resolved here, before that deadline, and the connection is made to the checked addresses. A name that
changes in between therefore cannot redirect it. Proxies of the environment are not used.
"""

import os
import random
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpcore
import httpx
import structlog

from coordinator.webhooks.lifecycle import fault_of_address
from coordinator.webhooks.resolver import ResolutionTimeout, Resolver

_log = structlog.get_logger(__name__)
_resolver = Resolver()
_Option = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of an attempt. `status`: of the response, if there was one. `error`: None if it succeeded."""

    status: int | None
    error: str | None


class _ForbiddenTarget(Exception):
    """The name resolves to an address that is not allowed."""


_FAILURES = (
    _ForbiddenTarget,
    OSError,
    ValueError,  # of an invalid name, whose labels are empty or too long
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
)


def send(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    timeout_seconds: float,
    allow_private: bool,
    resolver: Resolver = _resolver,
) -> Outcome:
    """POSTs the body. Only 2xx counts as success. Reads nothing of the response but its status."""
    backend = _FilteringBackend(urlsplit(url).scheme, allow_private, time.monotonic() + timeout_seconds, resolver)
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), timeout_seconds)
    try:
        with httpcore.ConnectionPool(tls_context(), network_backend=backend) as pool:
            request = pool.stream(
                "POST", url, headers=list(headers.items()), content=body, extensions={"timeout": timeouts}
            )
            with request as response:
                status = response.status
    except _FAILURES as error:
        _log.info("webhook_not_delivered", host=urlsplit(url).hostname, reason=repr(error))
        return Outcome(None, _failure_text(error))
    if 200 <= status < 300:
        return Outcome(status, None)
    redirect = " (redirects are not followed)" if 300 <= status < 400 else ""
    return Outcome(status, f"answered {status}{redirect}")


def _failure_text(error: BaseException) -> str:
    """The failure's kind for the webhook's owner, without addresses or text from the network."""
    if isinstance(error, _ForbiddenTarget | ResolutionTimeout):
        return str(error)
    if isinstance(error, httpcore.TimeoutException):
        return "not answered in time"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed: {cause.reason}"
        if isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, socket.gaierror):
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return "the name has no address" if isinstance(error, socket.gaierror) else type(error).__name__


def jitter() -> float:
    """Random share in 0.5 to 1, which spreads retries of simultaneous failures."""
    return random.SystemRandom().uniform(0.5, 1.0)


@lru_cache(maxsize=1)
def tls_context() -> ssl.SSLContext:
    """TLS context with the certificate authorities for receivers; `SSL_CERT_FILE` names others."""
    return httpx.create_ssl_context()


class _FilteringBackend(httpcore.NetworkBackend):
    """Connects only to allowed addresses, and only until a deadline."""

    def __init__(self, scheme: str, allow_private: bool, deadline: float, resolver: Resolver) -> None:
        self._scheme, self._allow_private, self._deadline = scheme, allow_private, deadline
        self._resolver = resolver
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[_Option] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception = _ForbiddenTarget(f"{host} has no address")
        for address in self._addresses(host, port):
            try:
                remaining = _remaining_seconds(self._deadline)
                return _DeadlineStream(
                    self._inner.connect_tcp(address, port, remaining, local_address, socket_options), self._deadline
                )
            except httpcore.ConnectError as error:
                failure = error
        raise failure

    def _addresses(self, host: str, port: int) -> list[str]:
        addresses = self._resolver.addresses(host, port, _remaining_seconds(self._deadline))
        for address in addresses:
            fault = fault_of_address(ip_address(address.partition("%")[0]), self._scheme, self._allow_private)
            if fault is not None:
                raise _ForbiddenTarget(fault)
        return addresses


class _DeadlineStream(httpcore.NetworkStream):
    """A connection with one deadline for everything; httpcore's own timeouts apply to each read."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: float) -> None:
        self._inner, self._deadline = inner, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _remaining_seconds(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _remaining_seconds(self._deadline))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _DeadlineStream(
            self._inner.start_tls(ssl_context, server_hostname, _remaining_seconds(self._deadline)), self._deadline
        )

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _remaining_seconds(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise httpcore.ReadTimeout("not answered in time")
    return remaining
