"""Addresses that this machine listens at: a free port, and the URL of one, IPv6 in brackets."""

import socket


def free_port(host: str) -> int:
    """A port that nobody listens at on `host`, a name or an address of either family.

    Raises SystemExit where this machine has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, 0), family=family) as server:
            return int(server.getsockname()[1])
    except OSError as error:
        raise SystemExit(f"error: cannot listen at host {host!r}: {error}") from None


def url_of(host: str, port: int) -> str:
    """The plain http URL of a port."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
