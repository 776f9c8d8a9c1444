"""HTTP connection to the coordinator: requests are signed by the coordinator's clock and retried where that is safe.

Errors of httpx become errors of `worker_agent.errors` here and nowhere else. `responses` reads the responses.
"""

import math
import random
import ssl
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import ExitStack, contextmanager
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    stop_before_delay,
)
from tenacity.wait import wait_base, wait_random_exponential

from federated import __version__
from worker_agent.coordinator_api.deadlines import keep_deadlines, response_deadline
from worker_agent.coordinator_api.foreign_responses import proxy_refusal
from worker_agent.coordinator_api.identity import Identity, Tokens
from worker_agent.coordinator_api.responses import (
    check_unpacked,
    parse,
    raise_for_problem,
    raise_for_store,
    read_response,
    store_at,
)
from worker_agent.errors import (
    BodyTooLarge,
    ConfigurationError,
    CoordinatorAway,
    CorruptBytes,
    NoCoordinator,
    NotUnderstood,
    StoreAway,
    is_transient,
)
from worker_agent.origins import Origins
from worker_agent.settings import AgentSettings

ATTEMPTS = 5
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 10.0
# Longer than the pause between heartbeats, so that those reuse a connection and its TLS handshake. Shorter than
# servers keep an idle connection (the coordinator 20 s), so that none is closed while it is used.
LIMITS = httpx.Limits(keepalive_expiry=15.0)
_JITTER = 0.1
THROUGH_COORDINATOR = {"Fedloom-Transfer": "through-coordinator"}
_SKEW_WORTH_A_RETRY_SECONDS = 2.0

_Model = TypeVar("_Model", bound=BaseModel)
_Value = TypeVar("_Value")


def jitter(seconds: float) -> float:
    """`seconds` with up to 10 % jitter, so that agents with simultaneous responses do not return together."""
    return seconds * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret


def open_http(settings: AgentSettings, url: str) -> httpx.Client:
    """A client for `url` with the timeouts and certificates of `settings`. Raises ConfigurationError."""
    timeout = httpx.Timeout(settings.request_timeout_seconds, connect=min(10.0, settings.request_timeout_seconds))
    headers = {"User-Agent": f"fedloom-worker-agent/{__version__}", "Accept-Encoding": "identity"}
    client = httpx.Client(
        base_url=url.rstrip("/"),
        timeout=timeout,
        verify=_tls(settings),
        headers=headers,
        limits=LIMITS,
        # No cookie is stored: any peer could fill this memory with them.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    )
    keep_deadlines(client)
    return client


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
    """The coordinator's time from the `Date` of its responses. Never ahead of it, since `Date` drops fractions."""

    def __init__(self) -> None:
        self.offset_seconds = 0.0

    def now(self) -> float:
        """Unix time in seconds, by the coordinator's clock."""
        return time.time() + self.offset_seconds

    def learn(self, date: str | None) -> float:
        """Set the clock by a `Date` header and return the change in seconds."""
        try:
            server_seconds = parsedate_to_datetime(date or "").timestamp()
        except (ValueError, OverflowError, OSError):
            return 0.0
        change_seconds = server_seconds - self.now()
        self.offset_seconds += change_seconds
        return change_seconds


class SignedRequests(httpx.Auth):
    """Authentication with a token that is valid by the coordinator's clock."""

    def __init__(self, identity: Identity, clock: Clock) -> None:
        self._tokens = Tokens(identity)
        self._clock = clock

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._tokens.at(self._clock.now())}"
        yield request


class Connection:
    """Requests of one worker. `stopping` cuts pauses between attempts short and ends retries.

    Requests go only to the coordinator's origin and, without a token, to those in `hosts`.
    """

    def __init__(
        self,
        http: httpx.Client,
        identity: Identity | None,
        stopping: threading.Event | None = None,
        hosts: Collection[str] = (),
    ) -> None:
        self.clock = Clock()
        self.stopping = stopping or threading.Event()
        self.origins = Origins(http.base_url, hosts)
        self._http = http
        self._auth = SignedRequests(identity, self.clock) if identity is not None else None

    def call(self, method: str, path: str, response_type: type[_Model], *, repeat: bool, **options: Any) -> _Model:
        """Send and parse the JSON response. `repeat`: sending twice does no harm, so failures are retried."""
        return parse(self.send(method, path, repeat=repeat, **options), response_type)

    def send(self, method: str, path: str, *, repeat: bool, **options: Any) -> httpx.Response:
        """Send and return a response below 300. Raises CoordinatorAway, CoordinatorRefused or NotUnderstood."""
        return self.retrying(lambda: self.once(method, path, **options), repeat=repeat)

    def once(self, method: str, path: str, **options: Any) -> httpx.Response:
        """As `send`, without retries."""
        seconds = options.get("timeout", self._http.timeout).read
        with translate_errors(), response_deadline(seconds), self._respond(method, path, **options) as stream:
            response = read_response(stream)
        raise_for_problem(response, self._http.base_url)
        return response

    def put_to_store(self, url: httpx.URL, content: bytes) -> None:
        """Send bytes to a URL of the coordinator's store, which needs no token. Raises StoreAway."""

        def once() -> None:
            with _store(url), response_deadline(self._http.timeout.read):
                with self._http.stream("PUT", url, content=content) as stream:
                    raise_for_store(read_response(stream))

        self.retrying(once, repeat=True)

    @contextmanager
    def stream(self, path: str, headers: dict[str, str], until: float | None = None) -> Iterator[httpx.Response]:
        """One GET whose body is read in pieces inside the block, by `until`, without retries.

        It follows a redirect of the coordinator to a listed store, and otherwise reads through the coordinator.
        """
        stores = self.origins.use_stores()
        first_headers = headers if stores else headers | THROUGH_COORDINATOR
        with translate_errors(), self._open(path, first_headers, until) as response:
            if not (stores and response.status_code == 307):
                yield self._check_body(response)
                return
            url = self.origins.target(response.headers.get("Location", ""))
        if url is None:
            with translate_errors(), self._open(path, headers | THROUGH_COORDINATOR, until) as response:
                yield self._check_body(response)
            return
        with _store(url), self._open(url, headers, until) as response:
            raise_for_store(response)
            check_unpacked(response)
            yield response

    def _check_body(self, response: httpx.Response) -> httpx.Response:
        """The same response, if it is a success with an uncompressed body."""
        raise_for_problem(response if response.status_code < 300 else read_response(response), self._http.base_url)
        check_unpacked(response)
        return response

    @contextmanager
    def _open(self, place: str | httpx.URL, headers: dict[str, str], until: float | None) -> Iterator[httpx.Response]:
        """A response with status and headers, its body unread. A path is the coordinator's, a URL is a store's."""
        left_seconds = None if until is None else until - time.monotonic()
        with ExitStack() as stack:
            with response_deadline(_least(self._http.timeout.read, left_seconds)):
                stream = (
                    self._respond("GET", place, headers=headers)
                    if isinstance(place, str)
                    else self._http.stream("GET", place, headers=headers)
                )
                response = stack.enter_context(stream)
            with response_deadline(None if until is None else until - time.monotonic()):
                yield response

    @contextmanager
    def _respond(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """The coordinator's response, its body unread. A request refused because of our clock is sent once more."""
        with self._http.stream(method, path, auth=self._auth, **options) as response:
            moved_seconds = self.clock.learn(response.headers.get("Date"))
            late = response.status_code == 401 and abs(moved_seconds) > _SKEW_WORTH_A_RETRY_SECONDS
            if self._auth is None or not late:
                yield response
                return
        with self._http.stream(method, path, auth=self._auth, **options) as response:
            self.clock.learn(response.headers.get("Date"))
            yield response

    def retrying(self, call: Callable[[], _Value], *, repeat: bool, until: float | None = None) -> _Value:
        """Run `call` up to five times with growing random pauses, if that is safe and ends by `until`."""

        def should_retry(error: BaseException) -> bool:
            if self.stopping.is_set():
                return False
            if isinstance(error, CorruptBytes | BodyTooLarge):  # a download counts the former itself
                return False
            # A load balancer sends pages, too, while its coordinator restarts.
            worth = is_transient(error) or isinstance(error, NoCoordinator)
            return worth and (repeat or (isinstance(error, CoordinatorAway) and error.never_sent))

        return Retrying(
            retry=retry_if_exception(should_retry),
            wait=wait_retry_after(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS),
            stop=stop_after_attempt(ATTEMPTS) | stop_before_delay(_within(until)),
            sleep=sleep_using_event(self.stopping),
            reraise=True,
        )(call)


class wait_retry_after(wait_base):  # noqa: N801 - a strategy, named as tenacity names its own
    """Random pause that doubles, on top of the coordinator's `Retry-After`, so that agents do not return together."""

    def __init__(self, first_seconds: float, longest_seconds: float) -> None:
        self._random = wait_random_exponential(multiplier=first_seconds, max=longest_seconds)

    def __call__(self, retry_state: RetryCallState) -> float:
        error = retry_state.outcome.exception() if retry_state.outcome is not None else None
        retry_after_seconds = error.retry_after_seconds if isinstance(error, CoordinatorAway) else None
        return self._random(retry_state) + (retry_after_seconds or 0.0)


@contextmanager
def translate_errors(peer: str = "the coordinator", away: type[CoordinatorAway] = CoordinatorAway) -> Iterator[None]:
    """Turn errors of httpx into errors of the agent. `peer`: its name in messages."""
    try:
        yield
    except httpx.ProxyError as error:
        raise proxy_refusal(error, peer) or away(f"cannot reach {peer}: {error}", never_sent=True) from error
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise away(f"cannot reach {peer}: {error}", never_sent=True) from error
    except httpx.HTTPError as error:
        raise away(f"{peer} did not respond: {type(error).__name__} {error}".rstrip()) from error


@contextmanager
def _store(url: httpx.URL) -> Iterator[None]:
    """Turn every fault of a store into StoreAway, after which the transfer goes through the coordinator."""
    try:
        with translate_errors(store_at(url), StoreAway):
            yield
    except (NotUnderstood, NoCoordinator) as error:
        raise StoreAway(f"{store_at(url)}: {error}") from error


def _least(*seconds: float | None) -> float | None:
    return min((each for each in seconds if each is not None), default=None)


def _within(until: float | None) -> float:
    return math.inf if until is None else until - time.monotonic()
