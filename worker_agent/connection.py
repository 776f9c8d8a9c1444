"""One HTTP request to the coordinator: signed, by the coordinator's clock, tried again where that is safe.

All errors of httpx and all problem documents become errors of `worker_agent.errors` here and nowhere else.
"""

import random
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
import structlog
from pydantic import BaseModel, ValidationError
from tenacity import RetryCallState, Retrying, retry_if_exception, sleep_using_event, stop_after_attempt
from tenacity.wait import wait_base, wait_random_exponential

from federated import __version__
from federated.protocol import Problem
from worker_agent.errors import ConfigurationError, CoordinatorAway, NotUnderstood, is_transient, refusal
from worker_agent.identity import Identity, Tokens
from worker_agent.settings import AgentSettings

ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 10.0
# Longer than the pause between heartbeats, so that those need no new connection and no new TLS handshake; shorter
# than servers keep a connection without a request (the coordinator 20 s), so that none is closed as it is used.
LIMITS = httpx.Limits(keepalive_expiry=15.0)
_APART = 0.1
_AWAY = frozenset({429, 502, 503, 504})
_RUNNING = "idempotency_key_running"
_SKEW_WORTH_A_RETRY_SECONDS = 2.0

_log = structlog.get_logger(__name__)
_Model = TypeVar("_Model", bound=BaseModel)
_Value = TypeVar("_Value")


def apart(seconds: float) -> float:
    """As long, but for a random tenth: agents that were answered at one moment do not come back at one moment."""
    return seconds * random.uniform(1 - _APART, 1 + _APART)  # noqa: S311 - no secret


def open_http(settings: AgentSettings, url: str) -> httpx.Client:
    """A client for the coordinator at `url` with the timeouts and the certificates of `settings`.

    Raises ConfigurationError.
    """
    timeout = httpx.Timeout(settings.request_timeout_seconds, connect=min(10.0, settings.request_timeout_seconds))
    headers = {"User-Agent": f"fedloom-worker-agent/{__version__}"}
    base_url = url.rstrip("/")
    return httpx.Client(base_url=base_url, timeout=timeout, verify=_tls(settings), headers=headers, limits=LIMITS)


def _tls(settings: AgentSettings) -> bool | ssl.SSLContext:
    if settings.ca_file is None and settings.client_certificate is None:
        return True
    name = "ca_file"
    try:
        context = ssl.create_default_context(cafile=None if settings.ca_file is None else str(settings.ca_file))
        if settings.client_certificate is not None:
            name = "client_certificate, client_key"
            context.load_cert_chain(settings.client_certificate, settings.client_key, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{name}: cannot be used: {error}") from None
    return context


class Clock:
    """The coordinator's time, as its answers' `Date` tells it. Never ahead of it: `Date` is cut to the second."""

    def __init__(self) -> None:
        self.offset_seconds = 0.0

    def now(self) -> float:
        """Unix time in seconds, by the coordinator's clock."""
        return time.time() + self.offset_seconds

    def learn(self, date: str | None) -> float:
        """Set the clock by a `Date` header; returns by how many seconds it moved."""
        try:
            told = parsedate_to_datetime(date or "").timestamp()
        except ValueError:
            return 0.0
        moved = told - self.now()
        self.offset_seconds += moved
        return moved


class SignedRequests(httpx.Auth):
    """A token for each request; one that was refused while our clock was wrong gets another and is sent once more."""

    def __init__(self, identity: Identity, clock: Clock) -> None:
        self._tokens = Tokens(identity)
        self._clock = clock

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        self._sign(request)
        response = yield request
        moved = self._clock.learn(response.headers.get("Date"))
        if response.status_code == 401 and abs(moved) > _SKEW_WORTH_A_RETRY_SECONDS:
            self._sign(request)
            yield request

    def _sign(self, request: httpx.Request) -> None:
        request.headers["Authorization"] = f"Bearer {self._tokens.at(self._clock.now())}"


class Connection:
    """Requests of one worker. `stopping` cuts pauses between attempts short and ends the retrying."""

    def __init__(
        self, http: httpx.Client, identity: Identity | None, stopping: threading.Event | None = None
    ) -> None:
        self.clock = Clock()
        self.stopping = stopping or threading.Event()
        self._http = http
        self._auth = SignedRequests(identity, self.clock) if identity is not None else None

    def ask(self, method: str, path: str, answer: type[_Model], *, repeat: bool, **request: Any) -> _Model:
        """Send and read the JSON answer. `repeat`: sending twice does no harm, so it is tried again on failure."""
        return parse(self.send(method, path, repeat=repeat, **request), answer)

    def send(self, method: str, path: str, *, repeat: bool, **request: Any) -> httpx.Response:
        """Send and return an answer below 400. Raises CoordinatorAway or CoordinatorRefused."""

        def once() -> httpx.Response:
            with translated():
                response = self._http.request(method, path, auth=self._auth, **request)
            raise_for_problem(response)
            return response

        return self.retrying(once, repeat=repeat)

    def put_to_store(self, url: str, content: bytes) -> None:
        """Send bytes to a URL of the coordinator's store, which wants no token. Raises CoordinatorAway."""

        def once() -> None:
            with translated(_store_at(url)):
                raise_for_store(self._http.put(url, content=content))

        self.retrying(once, repeat=True)

    @contextmanager
    def stream(self, path: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """One GET whose body is read in pieces inside the block; not tried again."""
        with translated(), self._http.stream("GET", path, auth=self._auth, headers=headers) as response:
            if response.status_code == 307:
                url = response.headers["Location"]
                with translated(_store_at(url)), self._http.stream("GET", url, headers=headers) as stored:
                    raise_for_store(stored)
                    yield stored
                return
            if response.status_code >= 400:
                response.read()
                raise_for_problem(response)
            yield response

    def retrying(self, call: Callable[[], _Value], *, repeat: bool) -> _Value:
        """Run `call` up to five times with growing, random pauses, as far as that is safe."""

        def worth_another(error: BaseException) -> bool:
            if self.stopping.is_set():
                return False
            return is_transient(error) and (repeat or (isinstance(error, CoordinatorAway) and error.never_sent))

        return Retrying(
            retry=retry_if_exception(worth_another),
            wait=wait_as_asked(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS),
            stop=stop_after_attempt(ATTEMPTS),
            sleep=sleep_using_event(self.stopping),
            reraise=True,
        )(call)


class wait_as_asked(wait_base):  # noqa: N801 - a strategy, named as tenacity names its own
    """Random pause that doubles, on top of the coordinator's `Retry-After`: those it told the same come apart."""

    def __init__(self, first_seconds: float, longest_seconds: float) -> None:
        self._random = wait_random_exponential(multiplier=first_seconds, max=longest_seconds)

    def __call__(self, retry_state: RetryCallState) -> float:
        error = retry_state.outcome.exception() if retry_state.outcome is not None else None
        asked = error.retry_after_seconds if isinstance(error, CoordinatorAway) else None
        return self._random(retry_state) + (asked or 0.0)


def parse(response: httpx.Response, answer: type[_Model]) -> _Model:
    """The answer's JSON as `answer`. Raises NotUnderstood."""
    try:
        return answer.model_validate_json(response.content)
    except ValidationError as error:
        where = f"{response.request.method} {response.request.url.path}"
        raise NotUnderstood(f"the answer to {where} is no {answer.__name__}: {error}") from None


@contextmanager
def translated(whom: str = "the coordinator") -> Iterator[None]:
    """The one place where errors of httpx become errors of the agent. `whom`: who was asked."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise CoordinatorAway(f"cannot reach {whom}: {error}", never_sent=True) from error
    except httpx.HTTPError as error:
        raise CoordinatorAway(f"{whom} did not answer: {type(error).__name__} {error}".rstrip()) from error


def raise_for_problem(response: httpx.Response) -> None:
    """Raise the error that an answer of 400 or more stands for."""
    if response.status_code < 400:
        return
    problem = _problem(response)
    if response.status_code in _AWAY or problem.code == _RUNNING:
        raise CoordinatorAway(
            f"{problem.status} {problem.detail or problem.title}",
            never_sent=response.status_code == 429,
            retry_after_seconds=_retry_after(response),
        )
    raise refusal(problem, response.headers.get("X-Request-ID"))


def raise_for_store(response: httpx.Response) -> None:
    """Raise CoordinatorAway for what the coordinator's store refuses; the URL is left out, it is as good as a key."""
    if response.status_code >= 300:
        raise CoordinatorAway(f"{_store_at(str(response.url))} answered {response.status_code}")


def _store_at(url: str) -> str:
    return f"the store at {httpx.URL(url).host}"


def _problem(response: httpx.Response) -> Problem:
    """The answer's problem document. Raises CoordinatorAway where there is none."""
    if response.headers.get("Content-Type", "").startswith("application/problem+json"):
        try:
            return Problem.model_validate_json(response.content)
        except ValidationError as error:
            _log.warning("problem_not_understood", status=response.status_code, reason=str(error))
    # Every refusal of a coordinator is a problem document: this one is a proxy's or a load balancer's.
    where = f"{response.request.method} {response.request.url.path}"
    raise CoordinatorAway(
        f"{response.status_code} {response.reason_phrase} to {where}: no answer of a coordinator",
        never_sent=response.status_code == 429,
        retry_after_seconds=_retry_after(response),
    )


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers.get("Retry-After", "")))
    except ValueError:
        return None
