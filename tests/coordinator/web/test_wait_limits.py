"""Limits on open waits, tested without a server."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from coordinator.auth.principals import Principal
from coordinator.errors import TooManyRequests
from coordinator.settings import get_settings
from coordinator.web.wait_limits import ORGANIZATION_KEYS, WaitCounts


def key(name: str, organization: str | None = "org_1") -> Principal:
    return Principal("key", name, organization, "viewer")


@pytest.fixture
def counts() -> WaitCounts:
    return WaitCounts()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def opened(stack: ExitStack, counts: WaitCounts, principal: Principal) -> int:
    """How many more the principal may open; they stay open as long as the stack."""
    for number in itertools.count():
        try:
            stack.enter_context(counts.count_open(principal))
        except TooManyRequests:
            return number
    raise AssertionError


def test_a_key_holds_ten_and_its_organization_fifty(counts: WaitCounts, stack: ExitStack) -> None:
    found = [opened(stack, counts, key(f"key_{number}")) for number in range(ORGANIZATION_KEYS + 2)]
    assert found == [10] * ORGANIZATION_KEYS + [0, 0]
    assert opened(stack, counts, key("key_x", "org_2")) == 10


def test_an_administrator_is_of_no_organization(counts: WaitCounts, stack: ExitStack) -> None:
    assert [opened(stack, counts, key(f"key_{number}", None)) for number in range(7)] == [10] * 7


def test_workers_have_a_larger_bound_each_for_itself(counts: WaitCounts, stack: ExitStack) -> None:
    found = [opened(stack, counts, Principal("worker", f"wkr_{number}", "org_1", "worker")) for number in range(3)]
    assert found == [get_settings().max_worker_waits] * 3
    assert opened(stack, counts, key("key_1")) == 10


def test_what_ends_is_forgotten_however_it_ends(counts: WaitCounts) -> None:
    with ExitStack() as stack:
        assert opened(stack, counts, key("key_1")) == 10
    with pytest.raises(ZeroDivisionError), counts.count_open(key("key_1")):
        raise ZeroDivisionError
    assert len(counts) == 0
    with ExitStack() as stack:
        assert opened(stack, counts, key("key_1")) == 10
