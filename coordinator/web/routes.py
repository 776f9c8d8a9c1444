"""Route class of all API operations, with the conventions common to all POSTs and GETs.

A POST with an `Idempotency-Key` takes effect once (see `idempotency`). The response to a GET of JSON carries an
`ETag`, and a caller that has it already gets 304 (see `etags`). The caller is authenticated and its role checked
before the body is read. Unknown parameters are rejected. So are bodies that are too large, hold too many values or
contain a text that cannot be stored (see `body_limits`).
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from functools import partial, wraps
from typing import Any

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from coordinator.auth import principals
from coordinator.db.sessions import run_in_own_thread, session_of, utcnow, writing
from coordinator.errors import CoordinatorError, FieldError
from coordinator.web import body_limits, etags, idempotency, problem_details
from coordinator.web.idempotency import Claim, StoredResponse

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

_STORED_HEADERS = ("Content-Type", "Location", "ETag", "Cache-Control", "Retry-After")
_UNSTORED_STATUSES = (401, 429)
_KEY_PARAMETER = {
    "name": idempotency.HEADER,
    "in": "header",
    "required": False,
    "description": "A text of the caller's choice. The same key and body take effect once and get the same response.",
    "schema": {"type": "string", "minLength": 1, "maxLength": idempotency.MAX_KEY_CHARACTERS},
}
_TAG_PARAMETER = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "`ETag` of the response that the caller has.",
    "schema": {"type": "string", "maxLength": body_limits.MAX_TAGS},
}
_TOO_LONG_TAGS = FieldError(pointer="#header/If-None-Match", detail=f"has at most {body_limits.MAX_TAGS} characters")
_NOT_MODIFIED = {304: {"description": "The caller has this response already"}}


class ShownOnce:
    """Marks the field of a response that holds a secret: `Annotated[str | None, ShownOnce()]`.

    The model also has a `secret_shown: bool`, which is true in a repeated response.
    """


class Route(APIRoute):
    """An operation with the conventions of this module, which it also declares in OpenAPI."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        methods = options.get("methods") or ["GET"]
        if "POST" in methods:
            _declare(options, problem_details.problem_responses(409), _KEY_PARAMETER)
        elif "GET" in methods and not _streams(options):
            _declare(options, _NOT_MODIFIED, _TAG_PARAMETER)
        if methods != ["GET"]:
            options["openapi_extra"] = body_limits.with_bound(options.get("openapi_extra") or {})
        super().__init__(path, _in_one_thread(endpoint), **options)

    def get_route_handler(self) -> Handler:
        handler = _with_etag(super().get_route_handler())
        if "POST" in (self.methods or ()):
            handler = _with_idempotency(handler, _secrets(self.response_model))
        handler = _with_body_limits(handler, self.openapi_extra or {}, has_json=self.body_field is not None)
        handler = _with_known_parameters(handler, set(_query_names(self.dependant)))
        return _with_authentication(handler, principals.gates(self.dependant))


def _in_one_thread(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint as a coroutine function that runs it in a thread of the pool.

    With a plain function, FastAPI serializes the result in a second thread while the transaction is still open. If
    all other threads wait for that transaction, this deadlocks.
    """
    if inspect.iscoroutinefunction(endpoint) or inspect.isgeneratorfunction(endpoint):
        return endpoint

    @wraps(endpoint)
    async def run(*args: Any, **kwargs: Any) -> Any:
        return await run_in_threadpool(endpoint, *args, **kwargs)

    return run


def _streams(options: dict[str, Any]) -> bool:
    response_class = options.get("response_class")
    return isinstance(response_class, type) and issubclass(response_class, StreamingResponse)


def _declare(options: dict[str, Any], responses: dict[Any, Any], parameter: dict[str, Any]) -> None:
    options["responses"] = responses | (options.get("responses") or {})
    extra = options.get("openapi_extra") or {}
    others = [other for other in extra.get("parameters", []) if other != parameter]
    options["openapi_extra"] = {**extra, "parameters": [*others, parameter]}


def _secrets(model: object) -> list[str]:
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return []
    fields = model.model_fields.items()
    return [name for name, field in fields if any(isinstance(mark, ShownOnce) for mark in field.metadata)]


# ---- parameters


def _query_names(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for dependency in dependant.dependencies:
        yield from _query_names(dependency)


def _with_known_parameters(handler: Handler, parameters: Collection[str]) -> Handler:
    """Rejects unknown query parameters, so that a misspelled name is not silently ignored."""

    async def handle(request: Request) -> Response:
        unknown = [name for name in dict.fromkeys(request.query_params) if name not in parameters]
        if unknown:
            raise problem_details.unknown_parameters(unknown, sorted(parameters))
        if request.method == "GET" and len(request.headers.get("If-None-Match", "")) > body_limits.MAX_TAGS:
            raise problem_details.invalid([_TOO_LONG_TAGS])
        return await handler(request)

    return handle


# ---- authentication and body limits


def _with_authentication(handler: Handler, gates: Sequence[principals.Gate]) -> Handler:
    """Checks the caller before any of the body is read."""

    async def handle(request: Request) -> Response:
        for gate in gates:
            await gate(request)
        return await handler(request)

    return handle


def _with_body_limits(handler: Handler, extra: Mapping[str, Any], *, has_json: bool) -> Handler:
    """Rejects a body over the operation's limits. Operations that take bytes enforce their own."""
    if body_limits.takes_bytes(extra):
        return handler

    async def handle(request: Request) -> Response:
        limit = body_limits.bound_of(extra)
        body = await body_limits.read_body(request, limit)
        if body and has_json:
            await body_limits.check_json(request, body, limit)
        return await handler(request)

    return handle


# ---- entity tags


def _with_etag(handler: Handler) -> Handler:
    """Adds an entity tag to JSON responses to a GET, and to those whose endpoint set a version."""

    async def handle(request: Request) -> Response:
        response = await handler(request)
        version = response.headers.get("ETag")
        if response.status_code not in (200, 201) or isinstance(response, StreamingResponse):
            return response
        if version is None and request.method != "GET":
            return response
        etag = etags.etag_of(bytes(response.body), version)
        if request.method == "GET" and etags.matches_etag(request.headers.get("If-None-Match"), etag):
            return Response(status_code=304, headers={"ETag": etag})
        response.headers["ETag"] = etag
        return response

    return handle


# ---- idempotency


def _with_idempotency(handler: Handler, secrets: Sequence[str]) -> Handler:
    """Runs the handler once for each key; requests without a key pass through."""

    async def handle(request: Request) -> Response:
        key = request.headers.get(idempotency.HEADER)
        if key is None:
            return await handler(request)
        body = await request.body()
        caller = await _caller(request, body)
        if caller is None:
            return await handler(request)
        claim = await run_in_threadpool(_begin, caller, request, key, body)
        if isinstance(claim, StoredResponse):
            return _replay(claim)
        try:
            response = await handler(request)
        except Exception as error:
            await run_in_own_thread(partial(_record_error, request, claim, error))
            raise
        await run_in_own_thread(partial(_record, request, claim, _stored_response(response, secrets)))
        return response

    return handle


def _begin(caller: str, request: Request, key: str, body: bytes) -> Claim | StoredResponse:
    condition = request.headers.get("If-Match", "")
    content = f"{request.method} {request.url.path}?{request.url.query}\n{condition}\n".encode() + body
    return idempotency.claim(caller, key, hashlib.sha256(content).hexdigest(), utcnow())


async def _caller(request: Request, body: bytes) -> str | None:
    """The caller's name: the id of a principal, or one for the bearer of a valid enrollment token; else None."""
    principal = await principals.identify(request)
    if principal is not None:
        return principal.id
    try:
        token = json.loads(body)["token"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return await run_in_threadpool(idempotency.enrolling_caller, token) if isinstance(token, str) else None


def _record(request: Request, claim: Claim, response: StoredResponse) -> None:
    """Stores the response in the endpoint's transaction, which is committed before the response is sent."""
    session = session_of(request)
    if session is not None:
        idempotency.record(session, claim, response)
        return
    with writing() as own_session:
        idempotency.record(own_session, claim, response)


def _record_error(request: Request, claim: Claim, error: Exception) -> None:
    """Stores a permanent error. Rolls the endpoint's session back first: on SQLite it holds the only write lock."""
    session = session_of(request)
    if session is not None:
        session.rollback()
    if not isinstance(error, CoordinatorError) or error.status in _UNSTORED_STATUSES or error.status >= 500:
        idempotency.release(claim)
        return
    with writing() as own_session:
        idempotency.record(own_session, claim, _stored_response(problem_details.response_for(error), ()))


def _stored_response(response: Response, secrets: Sequence[str]) -> StoredResponse:
    headers = {name: response.headers[name] for name in _STORED_HEADERS if name in response.headers}
    body = bytes(response.body).decode()
    if secrets and response.status_code < 300:
        body = json.dumps(json.loads(body) | dict.fromkeys(secrets) | {"secret_shown": True})
    return StoredResponse(response.status_code, headers, body)


def _replay(response: StoredResponse) -> Response:
    return Response(response.body, response.status, {**response.headers, "Idempotency-Replayed": "true"})
