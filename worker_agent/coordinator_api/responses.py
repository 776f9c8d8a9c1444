"""Reading of responses, in pieces up to a bound and never decompressed, and the errors that they stand for.

The peer may be anybody: whatever it sends, nothing here takes more memory than the bounds allow.
"""

from typing import TypeVar

import httpx
import structlog
from pydantic import BaseModel, ValidationError

from federated.protocol import Problem
from worker_agent.coordinator_api import foreign_responses
from worker_agent.errors import CoordinatorAway, NotUnderstood, StoreAway, refusal

MAX_RESPONSE_BYTES = 16 * 1024**2
MAX_ERROR_BYTES = 64 * 1024
MAX_VALUES = 100_000
"""Limit of values in one JSON document: each takes about fifty bytes in memory, and two in the document."""
LONGEST_RETRY_AFTER_SECONDS = 3600.0
NO_SUCH_PATH = "Not Found"
"""The detail of a coordinator's 404 for an unknown path, independent of any id."""
_REASON_CHARACTERS = 1000
_FAULTS_TOLD = 5
_AWAY = frozenset({429, 502, 503, 504})
_RUNNING = "idempotency_key_running"
_OF_THE_BODY = ("content-encoding", "content-length", "transfer-encoding")

_log = structlog.get_logger(__name__)
_Model = TypeVar("_Model", bound=BaseModel)


def read_response(response: httpx.Response) -> httpx.Response:
    """The streamed response with its body; of a response of 300 or more only the beginning.

    Raises NotUnderstood for a body that is longer than any of the protocol, or compressed.
    """
    if response.status_code >= 300:
        return _with_body(response, b"" if is_packed(response) else _read(response, MAX_ERROR_BYTES))
    check_unpacked(response)
    content = _read(response, MAX_RESPONSE_BYTES + 1)
    if len(content) > MAX_RESPONSE_BYTES:
        raise NotUnderstood(f"the response to {place_of(response)} is longer than {MAX_RESPONSE_BYTES} bytes")
    return _with_body(response, content)


def is_packed(response: httpx.Response) -> bool:
    """Whether the body is compressed, which no request allows."""
    return response.headers.get("Content-Encoding", "").strip().lower() not in {"", "identity"}


def check_unpacked(response: httpx.Response) -> None:
    """Raises NotUnderstood for a compressed body, because a small one may expand to any size."""
    if is_packed(response):
        encoding = response.headers["Content-Encoding"][:40]
        raise NotUnderstood(
            f"the response to {place_of(response)} is compressed ({encoding!r}), which was not requested"
        )


def _read(response: httpx.Response, most_bytes: int) -> bytes:
    content = bytearray()
    for piece in response.iter_raw():
        content += piece[: most_bytes - len(content)]
        if len(content) == most_bytes:
            break
    return bytes(content)


def _with_body(response: httpx.Response, content: bytes) -> httpx.Response:
    headers = [(name, value) for name, value in response.headers.multi_items() if name not in _OF_THE_BODY]
    reason = {"reason_phrase": response.reason_phrase.encode("ascii", errors="replace")}
    return httpx.Response(
        response.status_code, headers=headers, content=content, request=response.request, extensions=reason
    )


def parse(response: httpx.Response, response_type: type[_Model]) -> _Model:
    """The response's JSON as `response_type`. Raises NotUnderstood."""
    check_values(response)
    try:
        return response_type.model_validate_json(response.content)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)[:_FAULTS_TOLD]
        places = (f"{'.'.join(map(str, fault['loc'])) or 'the body'}: {fault['msg']}" for fault in faults)
        reason = "; ".join(places)[:_REASON_CHARACTERS]
        doubt = "does a Fedloom coordinator of this version respond at that `url`?"
        raise NotUnderstood(
            f"the response to {place_of(response)} is no {response_type.__name__}: {reason}; {doubt}"
        ) from None


def check_values(response: httpx.Response) -> None:
    """Raises NotUnderstood, without parsing, for a JSON document with more values than any of the protocol."""
    if sum(map(response.content.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise NotUnderstood(f"the response to {place_of(response)} has more than {MAX_VALUES} values")


def raise_for_problem(response: httpx.Response, base: httpx.URL) -> None:
    """Raise the error for a response of 300 or more, or for a web page. `base`: the coordinator's URL."""
    if response.status_code < 300:
        if foreign_responses.is_page(response):
            raise foreign_responses.web_page_error(response)
        return
    if response.status_code < 400:
        raise foreign_responses.redirect_error(response, base)
    problem = _problem(response)
    if problem.status == 404 and problem.detail == NO_SUCH_PATH:
        raise foreign_responses.unknown_path_error(response)
    if response.status_code in _AWAY or problem.code == _RUNNING:
        raise CoordinatorAway(
            f"{problem.status} {problem.detail or problem.title}",
            never_sent=response.status_code == 429,
            retry_after_seconds=_retry_after(response),
        )
    raise refusal(problem, response.headers.get("X-Request-ID"))


def raise_for_store(response: httpx.Response) -> None:
    """Raise StoreAway for a refusal by the store, without its URL, which grants access like a key."""
    if response.status_code >= 300:
        raise StoreAway(f"{store_at(response.url)} responded {response.status_code}")


def store_at(url: httpx.URL) -> str:
    """Name of the store for messages."""
    return f"the store at {url.host}"


def place_of(response: httpx.Response) -> str:
    """Method and path of the request."""
    return f"{response.request.method} {response.request.url.path}"


def _problem(response: httpx.Response) -> Problem:
    """The response's problem document. Raises CoordinatorAway or NoCoordinator if there is none."""
    if response.headers.get("Content-Type", "").startswith("application/problem+json"):
        try:
            return Problem.model_validate_json(response.content)
        except ValidationError as error:
            reason = str(error)[:_REASON_CHARACTERS]
            _log.warning("problem_not_understood", status=response.status_code, reason=reason)
    # Every refusal of a coordinator is a problem document, so this one comes from a proxy or a load balancer.
    if not foreign_responses.passes_by_waiting(response.status_code):
        raise foreign_responses.refusal_error(response)
    raise CoordinatorAway(
        f"{response.status_code} {response.reason_phrase} to {place_of(response)}: not a response of a coordinator",
        never_sent=response.status_code == 429,
        retry_after_seconds=_retry_after(response),
    )


def _retry_after(response: httpx.Response) -> float | None:
    try:
        seconds = float(response.headers.get("Retry-After", ""))
    except ValueError:
        return None
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER_SECONDS)
