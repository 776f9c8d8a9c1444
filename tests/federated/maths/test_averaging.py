"""Weighted sum: exact, ordered, and independent of threads."""

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from federated.maths.averaging import RecentResults, weighted_sum
from federated.payloads.payload import Payload

# One piece of 65,536, one step of 32,768, and a rest that fills none.
LENGTH = 3 * 32_768 + 77


def inputs(dtype: torch.dtype, count: int = 5, length: int = LENGTH) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, generator=generator).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_sum_is_that_of_a_loop_in_float64_in_the_given_order(dtype: torch.dtype) -> None:
    tensors, weights = inputs(dtype), [3.0, 100.0, 7.0, 1.0, 12.0]
    total = torch.zeros(LENGTH, dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        total = total + weight * tensor.double()
    base = torch.linspace(-1, 1, LENGTH)
    expected = (total / 123.0 + base.double()).float()
    assert torch.equal(weighted_sum(tensors, weights, divisor=123.0, base=base), expected)


def test_tensors_of_files_are_summed_to_the_same_bits(tmp_path: Path) -> None:
    tensors = [*inputs(torch.bfloat16, 2), *inputs(torch.float32, 2)]
    payloads = []
    for number, tensor in enumerate(tensors):
        Payload({"x": tensor}).write(tmp_path / str(number))
        payloads.append(Payload.open(tmp_path / str(number)))
    lazy = [payload.lazy("x") for payload in payloads]
    one = weighted_sum(tensors, [1, 2, 3, 4], divisor=10, base=tensors[3])
    assert torch.equal(weighted_sum(lazy, [1, 2, 3, 4], divisor=10, base=lazy[3]), one)


def test_a_hand_made_mean() -> None:
    mean = weighted_sum([torch.tensor([1.0, 2.0]), torch.tensor([4.0, 8.0])], [1, 2], divisor=3)
    assert mean.tolist() == [3.0, 6.0]


def test_what_float32_would_lose_is_kept() -> None:
    tensors = [torch.tensor([16_777_216.0]), torch.tensor([1.0]), torch.tensor([-16_777_216.0])]
    assert weighted_sum(tensors, [1, 1, 1]).tolist() == [1.0]


def test_the_shape_is_kept_and_the_result_may_stay_wide() -> None:
    wide = weighted_sum([torch.ones(2, 3), torch.ones(3, 2).T], [1, 1], dtype=torch.float64)
    assert wide.shape == (2, 3)
    assert wide.dtype == torch.float64


def test_threads_do_not_change_a_bit() -> None:
    tensors, weights = inputs(torch.float32), [0.1, 0.7, 1 / 3, 2.0, 1e-3]
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(weighted_sum(tensors, weights, divisor=3.1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_scalar_and_an_empty_tensor_are_summed() -> None:
    assert weighted_sum([torch.tensor(2.0)], [3]).item() == 6.0
    assert weighted_sum([torch.zeros(0, 4)], [3]).shape == (0, 4)


@pytest.mark.parametrize(
    ("tensors", "weights"),
    [([], []), ([torch.ones(2)], [1, 2]), ([torch.ones(2), torch.ones(3)], [1, 2])],
)
def test_what_does_not_fit_is_refused(tensors: list[Tensor], weights: list[float]) -> None:
    with pytest.raises(ValueError, match="cannot be summed"):
        weighted_sum(tensors, weights)


def test_a_base_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be summed"):
        weighted_sum([torch.ones(2)], [1], base=torch.ones(3))


class TestRecent:
    def test_a_result_is_made_once_while_it_is_kept(self) -> None:
        made: list[str] = []
        recent = RecentResults(lambda name: made.append(name) or name.upper(), keep=2)
        assert [recent(name) for name in "aabab"] == ["A", "A", "B", "A", "B"]
        assert made == ["a", "b"]
        assert [recent(name) for name in "cab"] == ["C", "A", "B"]
        assert made == ["a", "b", "c", "a", "b"]

    def test_a_second_thread_waits_for_the_first(self) -> None:
        begun, go_on = threading.Event(), threading.Event()
        made: list[str] = []

        def make(name: str) -> str:
            begun.set()
            assert go_on.wait(30)
            made.append(name)
            return name

        recent = RecentResults(make)
        results: list[str] = []
        threads = [threading.Thread(target=lambda: results.append(recent("a"))) for _ in range(2)]
        threads[0].start()
        assert begun.wait(30)
        threads[1].start()
        go_on.set()
        for thread in threads:
            thread.join()
        assert (results, made) == (["a", "a"], ["a"])

    def test_an_error_reaches_everyone_who_asks(self) -> None:
        recent: RecentResults[float] = RecentResults(lambda name: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                recent("a")
