"""Open streams and polls over real HTTP: their limits, and the events that end them."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from coordinator.auth.credentials import KEY_PREFIX, split_secret
from tests.coordinator.clients import scene
from tests.coordinator.jobs.job_rig import BOOT, Site, set_up
from tests.support.service import Bearer, Service, forget_settings, problem, serving

STREAM = {"Accept": "text/event-stream"}
BEYOND = 10**9
"""A number that no event has: nothing but what ends it comes of such a wait."""
SOON_SECONDS = 5.0
"""For what happens within a second; without it a wait would go on for half a minute, a stream for five."""


@pytest.fixture
def service(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """Two waits for a key, ten for an organization, three for a worker."""
    for name, value in {"MAX_WAITS": 2, "MAX_WORKER_WAITS": 3, "REQUESTS_PER_SECOND": 0}.items():
        monkeypatch.setenv(f"FEDLOOM_{name}", str(value))
    forget_settings()
    with serving() as service:
        yield service


@pytest.fixture
def site(service: Service, data_folder: Path) -> Site:
    owner = service.new_organization("owner")
    worker = service.new_worker(owner, "gpu", scene.CAPABILITIES)
    return Site(service, owner, worker, set_up(data_folder, owner.id, worker.id))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def events(site: Site) -> str:
    return f"/v1/federations/{site.rig.federation_id}/events"


def stream(stack: ExitStack, site: Site, client: httpx.Client) -> httpx.Response:
    """An open stream that has not been read; or a refusal, read."""
    asked = client.stream("GET", events(site), headers=STREAM, params={"after": BEYOND})
    answer = stack.enter_context(asked)
    if answer.status_code != 200:
        answer.read()
    return answer


def waiting(
    pool: ThreadPoolExecutor, ask: Callable[..., httpx.Response], *given: object, **named: object
) -> Future[httpx.Response]:
    """A call that is under way."""
    asked = pool.submit(ask, *given, **named)
    time.sleep(0.3)
    assert not asked.done()
    return asked


def poll(client: httpx.Client, path: str, wait: float = 30.0, **query: int) -> httpx.Response:
    return client.get(path, params={"wait": wait, **query})


def ended(answer: httpx.Response) -> float:
    """Seconds until the stream ended, in good order."""
    start = time.monotonic()
    assert "data:" not in "".join(answer.iter_text())
    return time.monotonic() - start


def until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + SOON_SECONDS
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def revoke(site: Site, client: httpx.Client) -> None:
    """Revokes a key of the owner's organization."""
    assert isinstance(client.auth, Bearer)
    key_id, _ = split_secret(KEY_PREFIX, client.auth.token) or ("", "")
    assert site.owner.owner.delete(f"/v1/organizations/{site.owner.id}/api-keys/{key_id}").status_code == 204


def holds_one(site: Site, stack: ExitStack) -> bool:
    """Whether the owner's viewer has one wait open, of two."""
    return [stream(stack, site, site.owner.viewer).status_code for _ in range(2)] == [200, 429]


class TestLimits:
    def test_of_a_thousand_streams_of_one_key_ten_are_served(
        self, data_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FEDLOOM_REQUESTS_PER_SECOND", "0")
        forget_settings()
        with serving() as service:
            owner = service.new_organization("owner")
            worker = service.new_worker(owner, "gpu", scene.CAPABILITIES)
            site = Site(service, owner, worker, set_up(data_folder, owner.id, worker.id))
            found = asyncio.run(opened(site, owner.viewer, 1_000))
        assert found == {"200": 10, "429 too_many_waits": 990}

    def test_a_refusal_says_when_to_come_back(self, site: Site, stack: ExitStack) -> None:
        assert [stream(stack, site, site.owner.viewer).status_code for _ in range(2)] == [200, 200]
        for refused in (stream(stack, site, site.owner.viewer), poll(site.owner.viewer, events(site), after=BEYOND)):
            problem(refused, 429, "too_many_waits")
            assert refused.headers["Retry-After"] == "5"

    def test_what_does_not_wait_is_not_counted(self, site: Site, stack: ExitStack) -> None:
        job_id = site.rig.leased()
        for _ in range(2):
            stream(stack, site, site.owner.viewer)
        assert site.owner.viewer.get(events(site)).status_code == 200
        assert poll(site.owner.viewer, events(site), wait=0, after=BEYOND).json()["items"] == []
        assert site.owner.viewer.get(f"/v1/jobs/{job_id}").status_code == 200
        problem(poll(site.owner.viewer, f"/v1/jobs/{job_id}"), 429, "too_many_waits")

    def test_the_keys_of_an_organization_have_a_bound_together(self, site: Site, stack: ExitStack) -> None:
        keys = [site.service.new_key(site.owner.id, "viewer") for _ in range(6)]
        found = [stream(stack, site, key).status_code for key in keys for _ in range(2)]
        assert found == [200] * 10 + [429] * 2
        assert stream(stack, site, site.service.admin).status_code == 200

    def test_a_worker_has_a_bound_of_its_own(self, site: Site, pool: ThreadPoolExecutor, stack: ExitStack) -> None:
        for _ in range(2):
            stream(stack, site, site.owner.viewer)
        waiting = [pool.submit(site.lease, 2.0) for _ in range(5)]
        assert sorted(future.result().status_code for future in waiting) == [204] * 3 + [429] * 2
        assert site.lease().status_code == 204


class TestRelease:
    def test_who_hangs_up_may_come_again(self, site: Site) -> None:
        for _ in range(3):
            with ExitStack() as stack:
                assert [stream(stack, site, site.owner.viewer).status_code for _ in range(2)] == [200, 200]
            until(lambda: free(site))

    @pytest.mark.parametrize("what", ["events", "job"])
    def test_so_may_who_hangs_up_during_a_poll(self, site: Site, what: str) -> None:
        path, after = (events(site), BEYOND) if what == "events" else (f"/v1/jobs/{site.rig.leased()}", None)
        query = {"wait": 30} if after is None else {"wait": 30, "after": after}
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                site.owner.viewer.get(path, params=query, timeout=0.3)
        until(lambda: free(site))

    def test_and_a_worker_who_hangs_up_while_it_waits_for_a_job(self, site: Site) -> None:
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                site.worker.http.post("/v1/jobs/lease", json={"boot_id": BOOT, "wait_seconds": 30}, timeout=0.3)
        until(lambda: site.lease(0.01).status_code == 204)

    def test_a_stream_that_ended_is_counted_no_more(self, site: Site) -> None:
        with ExitStack() as stack:
            open_streams = [stream(stack, site, site.owner.viewer) for _ in range(2)]
            delete(site)
            assert max(ended(answer) for answer in open_streams) < SOON_SECONDS
        site.rig = set_up(Path(), site.owner.id, site.worker.id)
        assert free(site)


def free(site: Site) -> bool:
    """Whether the viewer may open two streams."""
    with ExitStack() as stack:
        return [stream(stack, site, site.owner.viewer).status_code for _ in range(2)] == [200, 200]


def delete(site: Site) -> None:
    """Ends the federation and deletes it."""
    path = f"/v1/federations/{site.rig.federation_id}"
    assert site.owner.owner.post(f"{path}/cancel").status_code == 200
    assert site.owner.owner.delete(path).status_code == 204


class TestEnds:
    def test_a_revoked_key_loses_its_streams_and_its_polls(
        self, site: Site, stack: ExitStack, pool: ThreadPoolExecutor
    ) -> None:
        viewer = site.service.new_key(site.owner.id, "viewer")
        stream(stack, site, site.owner.viewer)
        open_stream = stream(stack, site, viewer)
        polled = waiting(pool, poll, viewer, events(site), after=BEYOND)
        revoke(site, viewer)
        assert ended(open_stream) < SOON_SECONDS
        problem(polled.result(SOON_SECONDS), 401, "key_revoked")
        assert holds_one(site, stack)

    def test_so_does_one_that_waits_for_a_job(self, site: Site, pool: ThreadPoolExecutor) -> None:
        viewer = site.service.new_key(site.owner.id, "viewer")
        polled = waiting(pool, poll, viewer, f"/v1/jobs/{site.rig.leased()}")
        revoke(site, viewer)
        problem(polled.result(SOON_SECONDS), 401, "key_revoked")

    @pytest.mark.parametrize("what", ["job", "lease"])
    def test_a_revoked_worker_waits_no_longer(self, site: Site, pool: ThreadPoolExecutor, what: str) -> None:
        if what == "job":
            polled = waiting(pool, poll, site.worker.http, f"/v1/jobs/{site.rig.leased()}")
        else:
            polled = waiting(pool, site.lease, 30.0)
        assert site.owner.owner.delete(f"/v1/workers/{site.worker.id}").status_code == 204
        problem(polled.result(SOON_SECONDS), 401, "worker_revoked")

    def test_an_organization_that_is_removed_loses_its_streams(
        self, site: Site, stack: ExitStack, pool: ThreadPoolExecutor
    ) -> None:
        guest = site.service.new_organization("guest")
        invitations = f"/v1/federations/{site.rig.federation_id}/invitations"
        assert site.owner.owner.post(invitations, json={"organization_id": guest.id}).status_code == 201
        stream(stack, site, site.owner.viewer)
        open_stream = stream(stack, site, guest.viewer)
        polled = waiting(pool, poll, guest.viewer, events(site), after=BEYOND)
        assert site.owner.owner.delete(f"{invitations}/{guest.id}").status_code == 204
        assert ended(open_stream) < SOON_SECONDS
        problem(polled.result(SOON_SECONDS), 404, "federation_unknown")
        assert holds_one(site, stack)

    def test_a_deleted_federation_ends_what_waits_for_it(
        self, site: Site, stack: ExitStack, pool: ThreadPoolExecutor
    ) -> None:
        open_stream = stream(stack, site, site.owner.viewer)
        polled = waiting(pool, poll, site.owner.viewer, events(site), after=BEYOND)
        delete(site)
        assert ended(open_stream) < SOON_SECONDS
        problem(polled.result(SOON_SECONDS), 404, "federation_unknown")


async def opened(site: Site, client: httpx.Client, count: int) -> Counter[str]:
    """Status and code of so many streams, of which those that are served stay open until all are."""
    address = httpx.URL(site.service.url)
    assert isinstance(client.auth, Bearer)
    request = (
        f"GET {events(site)}?after={BEYOND} HTTP/1.1\r\nHost: {address.host}\r\n"
        f"Authorization: Bearer {client.auth.token}\r\nAccept: {STREAM['Accept']}\r\n\r\n"
    ).encode()
    found: Counter[str] = Counter()
    kept: list[asyncio.StreamWriter] = []
    turns = asyncio.Semaphore(50)

    async def ask() -> None:
        async with turns:
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            status = head.split()[1]
            if status == "200":
                kept.append(writer)
                found[status] += 1
                return
            body = await reader.read(4096)
            found[f"{status} {httpx.Response(int(status), content=body).json()['code']}"] += 1
            writer.close()

    await asyncio.gather(*(ask() for _ in range(count)))
    for writer in kept:
        writer.close()
    return found
