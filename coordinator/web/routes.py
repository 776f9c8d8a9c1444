"""The route of every operation of the API: what holds for all POSTs and all GETs, once.

A POST with an `Idempotency-Key` is done once (see `idempotency`). A GET of JSON carries an `ETag`, and is answered
304 to who has it already (see `conditions`). Who asks, and whether that one may at all, is decided before the body
is read. A parameter that the operation does not know is refused, and a body that is too large, that holds too much or
has a text that cannot be stored (see `limits`).
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

_KEPT_HEADERS = ("Content-Type", "Location", "ETag", "Cache-Control", "Retry-After")
_NOT_KEPT = (401, 429)
_KEY_PARAMETER = {
    "name": idempotency.HEADER,
    "in": "header",
    "required": False,
    "description": "A text of the caller's choice. The same key and body are done once and answered the same.",
    "schema": {"type": "string", "minLength": 1, "maxLength": idempotency.MAX_KEY_CHARACTERS},
}
_TAG_PARAMETER = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "`ETag` of the answer that the caller has.",
    "schema": {"type": "string", "maxLength": body_limits.MAX_TAGS},
}
_TOO_LONG_TAGS = FieldError(pointer="#header/If-None-Match", detail=f"has at most {body_limits.MAX_TAGS} characters")
_UNCHANGED = {304: {"description": "The caller has it already"}}


class ShownOnce:
    """Marks the field of an answer that holds a secret: `Annotated[str | None, ShownOnce()]`.

    Its model has a `secret_shown: bool`, true in an answer that is given again.
    """


class Route(APIRoute):
    """An operation that keeps the conventions, and says so in OpenAPI."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        methods = options.get("methods") or ["GET"]
        if "POST" in methods:
            _declare(options, problem_details.problem_responses(409), _KEY_PARAMETER)
        elif "GET" in methods and not _streams(options):
            _declare(options, _UNCHANGED, _TAG_PARAMETER)
        if methods != ["GET"]:
            options["openapi_extra"] = body_limits.with_bound(options.get("openapi_extra") or {})
        super().__init__(path, _in_one_thread(endpoint), **options)

    def get_route_handler(self) -> Handler:
        handler = _tagged(super().get_route_handler())
        if "POST" in (self.methods or ()):
            handler = _keyed(handler, _secrets(self.response_model))
        handler = _within_bounds(handler, self.openapi_extra or {}, has_json=self.body_field is not None)
        handler = _strict(handler, set(_query_names(self.dependant)))
        return _behind_gates(handler, principals.gates(self.dependant))


def _in_one_thread(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint as a coroutine function that runs it in a thread of the pool.

    Left to itself FastAPI checks what a plain function returned in another thread, and waits for that one with the
    endpoint's transaction open, while those that have the threads wait for that transaction.
    """
    if inspect.iscoroutinefunction(endpoint) or inspect.isgeneratorfunction(endpoint):
        return endpoint

    @wraps(endpoint)
    async def answer(*given: Any, **named: Any) -> Any:
        return await run_in_threadpool(endpoint, *given, **named)

    return answer


def _streams(options: dict[str, Any]) -> bool:
    response_class = options.get("response_class")
    return isinstance(response_class, type) and issubclass(response_class, StreamingResponse)


def _declare(options: dict[str, Any], responses: dict[Any, Any], parameter: dict[str, Any]) -> None:
    options["responses"] = responses | (options.get("responses") or {})
    extra = options.get("openapi_extra") or {}
    others = [given for given in extra.get("parameters", []) if given != parameter]
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


def _strict(handler: Handler, known: Collection[str]) -> Handler:
    """Refuses what the operation would not look at: a name that is misspelt is not passed over in silence."""

    async def answer(request: Request) -> Response:
        unknown = [name for name in dict.fromkeys(request.query_params) if name not in known]
        if unknown:
            raise problem_details.unknown_parameters(unknown, sorted(known))
        if request.method == "GET" and len(request.headers.get("If-None-Match", "")) > body_limits.MAX_TAGS:
            raise problem_details.invalid([_TOO_LONG_TAGS])
        return await handler(request)

    return answer


# ---- who asks, and with how much


def _behind_gates(handler: Handler, gates: Sequence[principals.Gate]) -> Handler:
    """Asks for the caller before anything is read of what that one sent."""

    async def answer(request: Request) -> Response:
        for gate in gates:
            await gate(request)
        return await handler(request)

    return answer


def _within_bounds(handler: Handler, extra: Mapping[str, Any], *, has_json: bool) -> Handler:
    """Refuses a body beyond the operation's bounds; bytes are bounded by who stores them."""
    if body_limits.takes_bytes(extra):
        return handler

    async def answer(request: Request) -> Response:
        limit = body_limits.bound_of(extra)
        body = await body_limits.read_body(request, limit)
        if body and has_json:
            await body_limits.check_json(request, body, limit)
        return await handler(request)

    return answer


# ---- entity tags


def _tagged(handler: Handler) -> Handler:
    """Tags JSON answers: those of a GET, and those whose endpoint told a version."""

    async def answer(request: Request) -> Response:
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

    return answer


# ---- idempotency


def _keyed(handler: Handler, secrets: Sequence[str]) -> Handler:
    """Runs the handler once for each key; requests without one pass through."""

    async def answer(request: Request) -> Response:
        key = request.headers.get(idempotency.HEADER)
        if key is None:
            return await handler(request)
        body = await request.body()
        caller = await _caller(request, body)
        if caller is None:
            return await handler(request)
        claim = await run_in_threadpool(_begin, caller, request, key, body)
        if isinstance(claim, StoredResponse):
            return _again(claim)
        try:
            response = await handler(request)
        except Exception as error:
            await run_in_own_thread(partial(_end_refused, request, claim, error))
            raise
        await run_in_own_thread(partial(_end, request, claim, _kept(response, secrets)))
        return response

    return answer


def _begin(caller: str, request: Request, key: str, body: bytes) -> Claim | StoredResponse:
    condition = request.headers.get("If-Match", "")
    asked = f"{request.method} {request.url.path}?{request.url.query}\n{condition}\n".encode() + body
    return idempotency.claim(caller, key, hashlib.sha256(asked).hexdigest(), utcnow())


async def _caller(request: Request, body: bytes) -> str | None:
    """Who asks: a principal, or the bearer of an enrollment token that there is. None: nobody."""
    principal = await principals.identify(request)
    if principal is not None:
        return principal.id
    try:
        token = json.loads(body)["token"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return await run_in_threadpool(idempotency.enrolling_caller, token) if isinstance(token, str) else None


def _end(request: Request, claim: Claim, answer: StoredResponse) -> None:
    """Records in the endpoint's transaction, which is committed before the answer leaves."""
    session = session_of(request)
    if session is not None:
        idempotency.record(session, claim, answer)
        return
    with writing() as own:
        idempotency.record(own, claim, answer)


def _end_refused(request: Request, claim: Claim, error: Exception) -> None:
    """Records a refusal that will stay one. The endpoint's session goes first: on SQLite it holds the only lock."""
    session = session_of(request)
    if session is not None:
        session.rollback()
    if not isinstance(error, CoordinatorError) or error.status in _NOT_KEPT or error.status >= 500:
        idempotency.release(claim)
        return
    with writing() as own:
        idempotency.record(own, claim, _kept(problem_details.response_for(error), ()))


def _kept(response: Response, secrets: Sequence[str]) -> StoredResponse:
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    body = bytes(response.body).decode()
    if secrets and response.status_code < 300:
        body = json.dumps(json.loads(body) | dict.fromkeys(secrets) | {"secret_shown": True})
    return StoredResponse(response.status_code, headers, body)


def _again(kept: StoredResponse) -> Response:
    return Response(kept.body, kept.status, {**kept.headers, "Idempotency-Replayed": "true"})
