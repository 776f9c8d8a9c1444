"""Problem documents (RFC 9457): exception handlers, and their descriptions in OpenAPI."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from coordinator.errors import CoordinatorError, FieldError, TooLarge, Unprocessable, out_of_service
from federated.protocol import Problem

MEDIA_TYPE = "application/problem+json"
LOCATION_HEADER: dict[int | str, dict[str, Any]] = {
    201: {"headers": {"Location": {"description": "Path of the new resource", "schema": {"type": "string"}}}}
}
MAX_FAULTS = 20
"""Faults listed in one response, which should not be longer than its request."""
_BAD_KEY = "[key]"
_log = structlog.get_logger(__name__)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For an endpoint's `responses`: these error statuses, and those common to nearly all endpoints."""
    return {status: problem_response(status) for status in sorted({401, 422, 429, 503, *statuses})}


def problem_response(status: int) -> dict[str, Any]:
    """The OpenAPI response object of errors with this status."""
    title = HTTPStatus(status).phrase
    example = {"type": "urn:fedloom:problem:…", "title": title, "status": status, "code": "…", "detail": "…"}
    schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
    response: dict[str, Any] = {
        "description": title,
        "content": {MEDIA_TYPE: {"schema": schema, "example": example}},
    }
    if status in (429, 503):
        response["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return response


class ProblemResponse(JSONResponse):
    """A problem document. It quotes the request, so lone surrogates may occur in it; they are replaced by `?`."""

    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def response_for(error: CoordinatorError) -> JSONResponse:
    """The problem response for this error."""
    return ProblemResponse(error.problem(), error.status, headers=error.response_headers())


def install(app: FastAPI) -> None:
    """Makes the app report every error as a problem document."""
    app.add_exception_handler(CoordinatorError, _coordinator_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _disconnect)
    app.add_exception_handler(DataError, _impossible_value)
    app.add_exception_handler(OperationalError, _database_error)
    app.add_exception_handler(PoolTimeoutError, _database_error)
    app.add_exception_handler(Exception, _unexpected_error)


def _coordinator_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, CoordinatorError)  # noqa: S101 - what the handler is registered for
    return response_for(error)


def _invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what the handler is registered for
    faults = [_fault(fault["loc"], fault["msg"], error.body) for fault in error.errors()[:MAX_FAULTS]]
    return response_for(invalid(faults))


def invalid(faults: Sequence[FieldError]) -> Unprocessable:
    """The error for a request with these invalid fields."""
    detail = "; ".join(f"{fault['pointer'] or 'the body'}: {fault['detail']}" for fault in faults[:5])
    return Unprocessable("request_invalid", detail, errors=faults)


def unknown_parameters(names: Sequence[str], parameters: Sequence[str]) -> Unprocessable:
    """The error for a query with these unknown names; the operation has `parameters`."""
    choices = f"there are: {', '.join(parameters)}" if parameters else "it takes none"
    detail = f"is no parameter of this operation; {choices}"
    return invalid([FieldError(pointer=f"#query{pointer([name])}", detail=detail) for name in names[:MAX_FAULTS]])


def _fault(location: Sequence[int | str], message: str, body: object) -> FieldError:
    """A body field by JSON pointer (RFC 6901); other fields as `#query/…`, `#path/…` and `#header/…`."""
    place, *path = location
    if place == "body":
        return {"pointer": pointer_to(path, body), "detail": message}
    return {"pointer": f"#{place}{pointer(path)}", "detail": message}


def pointer_to(path: Sequence[int | str], body: object) -> str:
    """JSON pointer to a field of `body` at pydantic's location `path`.

    A location also names the union member that pydantic tried, and marks an invalid key of a mapping. Parts that are
    neither in the body nor the missing field itself are dropped.
    """
    parts: list[int | str] = []
    inner = body
    for index, part in enumerate(path):
        last, present = index == len(path) - 1, isinstance(inner, Mapping) and part in inner
        if isinstance(inner, Mapping) and not present and not last:
            continue
        if isinstance(part, str) and isinstance(inner, list | str | int | float):
            continue
        if part == _BAD_KEY and last and not present:
            continue
        parts.append(part)
        inner = _inside(inner, part)
    return pointer(parts)


def _inside(value: object, part: int | str) -> object:
    if isinstance(value, Mapping):
        return value.get(part)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return value[part]
    return None


def pointer(path: Sequence[int | str]) -> str:
    """JSON pointer (RFC 6901) of these keys and indices."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - what the handler is registered for
    if error.status_code == HTTPStatus.BAD_REQUEST:  # FastAPI could not parse the body
        return response_for(invalid([FieldError(pointer="", detail="is not JSON in UTF-8, or nested too deep")]))
    phrase = HTTPStatus(error.status_code).phrase
    problem = CoordinatorError(phrase.lower().replace(" ", "_").replace("-", "_"), str(error.detail))
    document = {**problem.problem(), "title": phrase, "status": error.status_code}
    return ProblemResponse(document, error.status_code, headers=error.headers)


def _disconnect(request: Request, error: Exception) -> JSONResponse:
    _log.info("client_disconnected", method=request.method, path=request.url.path)
    return response_for(TooLarge("disconnected", "The connection ended before the body did."))


def _impossible_value(request: Request, error: Exception) -> JSONResponse:
    """PostgreSQL accepts no NUL in a text, not even in a search."""
    _log.warning("value_refused", method=request.method, path=request.url.path, reason=type(error).__name__)
    detail = "A text in the request has a character that cannot be stored (NUL), or a number is too large."
    return response_for(Unprocessable("value_impossible", detail))


def _database_error(request: Request, error: Exception) -> JSONResponse:
    problem = out_of_service("database", getattr(error, "orig", None) or error)
    _log.warning(problem.code, method=request.method, path=request.url.path, reason=type(error).__name__)
    return response_for(problem)


def _unexpected_error(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises the error again after this response, so that the server logs its traceback.
    _log.error("unexpected_error", method=request.method, path=request.url.path, reason=type(error).__name__)
    return response_for(
        CoordinatorError("internal_error", "Something went wrong here; the operator finds it in the log.")
    )
