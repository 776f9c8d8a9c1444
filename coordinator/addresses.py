"""Local network addresses: a free port, and the URL of a port, with brackets around IPv6."""

import socket


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free at this moment at `host`, a name or an address of either family.

    Raises SystemExit if this machine has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, 0), family=family) as server:
            return int(server.getsockname()[1])
    except OSError as error:
        raise SystemExit(f"error: cannot listen at host {host!r}: {error}") from None


def url_of(host: str, port: int) -> str:
    """The http URL of a port."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
