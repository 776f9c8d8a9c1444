"""Responses that no coordinator sends: a redirect, a web page, a refusal by a proxy. Each error says what to change.

Waiting resolves none of them. Temporary ones, such as the page of a load balancer while its coordinator restarts
(5xx), are not among them.
"""

import re
from http import HTTPStatus

import httpx

from federated.printable import printable
from worker_agent.errors import BodyTooLarge, NoCoordinator
from worker_agent.origins import origin_of

PAGE_TYPES = frozenset({"text/html", "application/xhtml+xml"})
PASSING = frozenset({408, 425, 429})
_MAX_CHARACTERS = 200
_IN_BETWEEN = "`url` names something else, or a proxy or a login page is in between"
_REASONS = {
    401: "a proxy in between requires a login: its operator must let the API through without one",
    403: "a proxy in between forbids it: its operator must let this node through",
    404: f"{_IN_BETWEEN}; is a path missing in `url`, such as https://example.org/fedloom?",
    407: "a proxy in between requires a user and a password: put them into the address in HTTPS_PROXY or HTTP_PROXY",
    511: "this network requires a login before it lets anything through",
}


def passes_by_waiting(status: int) -> bool:
    """Whether an error status from something other than a coordinator may be temporary."""
    return status in PASSING or (status >= HTTPStatus.INTERNAL_SERVER_ERROR and status not in _REASONS)


def address_of(response: httpx.Response) -> str:
    """URL of the request, without user, password and query."""
    return _address_text(response.request.url)


def is_page(response: httpx.Response) -> bool:
    """Whether a response is a web page, by its type, or by its first character if its body was read."""
    return media_type(response) in PAGE_TYPES or (response.is_closed and response.content.lstrip()[:1] == b"<")


def media_type(response: httpx.Response) -> str:
    """Media type of the body, without parameters; empty if there is none."""
    return printable(response.headers.get("Content-Type", "").partition(";")[0].strip().lower(), _MAX_CHARACTERS)


def web_page_error(response: httpx.Response) -> NoCoordinator:
    """The error for a web page in place of a response."""
    summary = f"{address_of(response)} responds with a web page ({_kind_of(response)})"
    return NoCoordinator(f"{summary}, not with a Fedloom coordinator: {_IN_BETWEEN}")


def redirect_error(response: httpx.Response, base: httpx.URL) -> NoCoordinator:
    """The error for a redirect, which is not followed. `base`: the coordinator's URL in the settings."""
    summary = f"{address_of(response)} was redirected ({response.status_code})"
    target = _target(response)
    if target is None:
        return NoCoordinator(f"{summary} to no address: {_IN_BETWEEN}")
    there = _address_in(target, response.request.url.path.removeprefix(base.path.rstrip("/")))
    if there is None or there == _address_text(base):
        return NoCoordinator(
            f"{summary} to {_address_text(target)}, which is no Fedloom coordinator's: {_IN_BETWEEN}"
        )
    if base.scheme == "https" and target.scheme != "https":
        return NoCoordinator(
            f"{summary} to {there}, without encryption: the operator of {_address_text(base)} must fix that"
        )
    return NoCoordinator(f'{summary} to {there}: if that is your coordinator, put url = "{there}" into the settings')


def refusal_error(response: httpx.Response) -> NoCoordinator:
    """The error for a refusal that does not come from a coordinator."""
    if response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return _body_size_error(response)
    summary = f"{address_of(response)} responds {_kind_of(response)}, unlike a Fedloom coordinator"
    return NoCoordinator(f"{summary}: {_REASONS.get(response.status_code, _IN_BETWEEN)}")


def unknown_path_error(response: httpx.Response) -> NoCoordinator:
    """The error for a coordinator without this path."""
    return NoCoordinator(
        f"{address_of(response)}: the coordinator there has no such path; does `url` end with a path too many, "
        "or is the coordinator of another version?"
    )


def _kind_of(response: httpx.Response) -> str:
    return f"{response.status_code} {media_type(response)}".rstrip()


def _body_size_error(response: httpx.Response) -> BodyTooLarge:
    size = response.request.headers.get("Content-Length", "some")
    chunk = ", or the coordinator's operator lower chunk_bytes" if "/chunks/" in response.request.url.path else ""
    return BodyTooLarge(
        f"{address_of(response)}: a proxy in front of the coordinator refuses a body of {size} bytes (413); "
        f"its operator must raise the limit (nginx: client_max_body_size){chunk}"
    )


def proxy_refusal(error: httpx.ProxyError, peer: str) -> NoCoordinator | None:
    """The error for a proxy of this network that refuses to connect to `peer`; None if it may do so later."""
    status = re.match(r"\d{3}\b", str(error))
    if status is None or passes_by_waiting(int(status[0])):
        return None
    advice = (
        _REASONS[407] if status[0] == "407" else "its operator must let this node through, or name it in NO_PROXY"
    )
    return NoCoordinator(f"the proxy in HTTPS_PROXY refuses to connect to {peer} ({printable(error)}): {advice}")


def _target(response: httpx.Response) -> httpx.URL | None:
    location = response.headers.get("Location", "")
    try:
        return response.request.url.join(location) if location else None
    except (httpx.InvalidURL, ValueError):
        return None


def _address_in(target: httpx.URL, path: str) -> str | None:
    """The value of `url` with which `path` leads to `target`, or None."""
    if origin_of(target) is None:
        return None
    if target.path in {"", "/"}:
        return _address_text(target)
    return (
        _address_text(target.copy_with(path=target.path.removesuffix(path))) if target.path.endswith(path) else None
    )


def _address_text(url: httpx.URL) -> str:
    return printable(f"{origin_of(url) or url.scheme}{url.path}".rstrip("/"), _MAX_CHARACTERS)
