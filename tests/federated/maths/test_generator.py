"""Counter-based generator against the published vectors of Random123."""

import pytest
import torch

from federated.maths.generator import philox, stream_key, words

# kat_vectors of Random123, "philox4x32 10": counter, key, answer.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_a_block_has_the_published_words(
    counter: tuple[int, int, int, int], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    assert tuple(int(lane) for lane in philox((c0, c1, c2, c3), key)) == answer


def test_the_first_words_of_a_stream_are_those_of_its_first_blocks() -> None:
    assert words((0, 0), 0, 4).tolist() == list(KNOWN_ANSWERS[0][2])


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 7, 64])
def test_any_chunking_gives_the_same_words(cut: int) -> None:
    key = stream_key(7, "layer")
    whole = words(key, 3, 130)
    pieces = [words(key, 3 + first, min(cut, 130 - first)) for first in range(0, 130, cut)]
    assert torch.equal(torch.cat(pieces), whole)


def test_words_far_into_a_stream_use_the_upper_counter_word() -> None:
    far = words((1, 2), 4 * 2**32, 4)
    assert not torch.equal(far, words((1, 2), 0, 4))
    c0, c1, zero = torch.tensor([0]), torch.tensor([1]), torch.tensor([0])
    assert far.tolist() == [int(lane) for lane in philox((c0, c1, zero, zero), (1, 2))]


def test_seed_and_name_both_choose_the_stream() -> None:
    keys = {stream_key(seed, name) for seed in (0, 1) for name in ("a", "b", "1/a")}
    assert len(keys) == 6


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    words(stream_key(0, "x"), 0, 100)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_a_gpu_makes_the_same_words() -> None:
    key = stream_key(7, "layer")
    assert torch.equal(words(key, 5, 10_000, device="cuda").cpu(), words(key, 5, 10_000))
