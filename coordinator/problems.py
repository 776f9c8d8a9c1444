"""Every error as RFC 9457 problem+json, and what OpenAPI says of them."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from coordinator.errors import CoordinatorError, FieldError, TooLarge, Unavailable, Unprocessable
from federated.protocol import Problem

MEDIA_TYPE = "application/problem+json"
_log = structlog.get_logger(__name__)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For an endpoint's `responses`: which errors it gives besides those that nearly all of them give."""
    return {status: _documented(status) for status in sorted({401, 422, 429, 503, *statuses})}


def _documented(status: int) -> dict[str, Any]:
    title = HTTPStatus(status).phrase
    example = {"type": "urn:fedloom:problem:…", "title": title, "status": status, "code": "…", "detail": "…"}
    schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
    documented: dict[str, Any] = {
        "description": title,
        "content": {MEDIA_TYPE: {"schema": schema, "example": example}},
    }
    if status in (429, 503):
        documented["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return documented


def answer(error: CoordinatorError) -> JSONResponse:
    """The answer that says this error."""
    return JSONResponse(error.problem(), error.status, headers=error.answer_headers(), media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Lets the app answer every error as a problem document."""
    app.add_exception_handler(CoordinatorError, _coordinator_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(OperationalError, _database_error)
    app.add_exception_handler(PoolTimeoutError, _database_error)
    app.add_exception_handler(Exception, _unexpected)


def _coordinator_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, CoordinatorError)  # noqa: S101 - what the handler is registered for
    return answer(error)


def _invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what the handler is registered for
    faults = [_fault(fault["loc"], fault["msg"], error.body) for fault in error.errors()]
    return answer(invalid(faults))


def invalid(faults: Sequence[FieldError]) -> Unprocessable:
    """The error for a request with these bad fields."""
    detail = "; ".join(f"{fault['pointer'] or 'the body'}: {fault['detail']}" for fault in faults[:5])
    return Unprocessable("request_invalid", detail, errors=faults)


def _fault(location: Sequence[int | str], message: str, body: object) -> FieldError:
    """A body field by JSON pointer (RFC 6901); `#query/…`, `#path/…` and `#header/…` for what stands elsewhere."""
    place, *path = location
    if place == "body":
        return {"pointer": pointer_to(path, body), "detail": message}
    return {"pointer": f"#{place}{_pointer(path)}", "detail": message}


def pointer_to(path: Sequence[int | str], body: object) -> str:
    """JSON pointer to a field of `body`, from where pydantic says it is.

    pydantic also names the member of a union that it tried; what is not in the body, and not the missing field
    itself, is left out.
    """
    kept: list[int | str] = []
    inner = body
    for index, part in enumerate(path):
        if isinstance(inner, Mapping) and part not in inner and index < len(path) - 1:
            continue
        kept.append(part)
        inner = _inside(inner, part)
    return _pointer(kept)


def _inside(value: object, part: int | str) -> object:
    if isinstance(value, Mapping):
        return value.get(part)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return value[part]
    return None


def _pointer(path: Sequence[int | str]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - what the handler is registered for
    phrase = HTTPStatus(error.status_code).phrase
    raised = CoordinatorError(phrase.lower().replace(" ", "_").replace("-", "_"), str(error.detail))
    document = {**raised.problem(), "title": phrase, "status": error.status_code}
    return JSONResponse(document, error.status_code, headers=error.headers, media_type=MEDIA_TYPE)


def _disconnected(request: Request, error: Exception) -> JSONResponse:
    _log.info("client_disconnected", method=request.method, path=request.url.path)
    return answer(TooLarge("disconnected", "The connection ended before the body did."))


def _database_error(request: Request, error: Exception) -> JSONResponse:
    _log.warning("database_unavailable", method=request.method, path=request.url.path, reason=type(error).__name__)
    return answer(Unavailable("database_unavailable", "The database does not answer at the moment. Try again."))


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises it again after this answer, so that the server logs its traceback.
    _log.error("unexpected_error", method=request.method, path=request.url.path, reason=type(error).__name__)
    return answer(CoordinatorError("internal_error", "Something went wrong here; the operator finds it in the log."))
