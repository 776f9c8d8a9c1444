"""Tests of clients' ranks, and of refusals before anything runs."""

from collections import Counter
from typing import Any

import pytest

from federated.algorithms.flexlora.lora_matrices import Matrix
from federated.algorithms.flexlora.ranks import affordable_rank, client_ranks
from federated.contract import ClientFacts
from federated.registry import check_trainable, make_config
from federated.trainable import Lora

QUERY = Matrix("layer.0.attention.query", "a", "b", 600, 600, 200)
UP = Matrix("layer.0.up_proj", "a", "b", 600, 600, 200)


def facts(ordinal: int = 0, settings: dict[str, Any] | None = None, **capabilities: Any) -> ClientFacts:
    return ClientFacts(ordinal, "one", 9, capabilities, settings or {}, None, 0)


def ranks(rule: Any, client: ClientFacts, seed: int = 0) -> tuple[int, ...]:
    return client_ranks(rule, 0.1, seed, client, [QUERY, UP])


class TestMixes:
    @pytest.mark.parametrize(
        ("mix", "shares"),
        [
            ("uniform", (0.25, 0.25, 0.25, 0.25)),
            ("heavy-tail-light", (0.8, 0.067, 0.067, 0.067)),
            ("heavy-tail-strong", (0.067, 0.067, 0.067, 0.8)),
            ("normal", (0.125, 0.375, 0.375, 0.125)),
        ],
    )
    def test_clients_are_of_the_papers_four_kinds(self, mix: str, shares: tuple[float, ...]) -> None:
        counts = Counter(ranks(mix, facts(ordinal)) for ordinal in range(4000))
        assert counts.keys() == {(8, 8), (30, 30), (30, 200), (200, 200)}
        for kind, share in zip(sorted(counts), shares, strict=True):
            assert counts[kind] / 4000 == pytest.approx(share, abs=0.03)

    def test_a_client_keeps_its_rank_and_another_federation_draws_anew(self) -> None:
        first = [ranks("uniform", facts(ordinal)) for ordinal in range(50)]
        assert first == [ranks("uniform", facts(ordinal)) for ordinal in range(50)]
        assert first != [ranks("uniform", facts(ordinal), seed=1) for ordinal in range(50)]

    def test_ranks_are_shares_of_the_trainables_and_at_least_one(self) -> None:
        small = Matrix("layer.0.up_proj", "a", "b", 600, 600, 10)
        counts = {client_ranks("uniform", 0.1, 0, facts(ordinal), [small]) for ordinal in range(100)}
        assert counts == {(1,), (2,), (10,)}


class TestOneRank:
    def test_a_clients_own_setting_comes_first(self) -> None:
        for rule in ("auto", "full", "normal", 50):
            assert ranks(rule, facts(settings={"rank": 7}, memory_bytes=10**12)) == (7, 7)

    def test_one_for_all_or_the_trainables(self) -> None:
        assert ranks(50, facts()) == (50, 50)
        assert ranks("full", facts()) == (200, 200)

    @pytest.mark.parametrize("rule", ["auto", "full", "heavy-tail-strong", 50])
    def test_never_above_what_the_node_allows(self, rule: Any) -> None:
        for ordinal in range(20):
            assert max(ranks(rule, facts(ordinal, {"rank": 60} if ordinal % 2 else {}, max_rank=6))) <= 6

    def test_never_above_a_matrixs_own(self) -> None:
        narrow = Matrix("layer.0.query", "a", "b", 600, 600, 4)
        assert client_ranks("auto", 0.1, 0, facts(settings={"rank": 60}), [narrow, UP]) == (4, 60)

    def test_memory_decides_under_auto(self) -> None:
        # A tenth of the memory over 16 bytes for each of 2 * 1,200 numbers that a rank adds.
        assert ranks("auto", facts(memory_bytes=16 * 2400 * 10 * 25)) == (25, 25)
        assert ranks("auto", facts(memory_bytes=1)) == (1, 1)
        assert ranks("auto", facts()) == (200, 200)
        assert affordable_rank(None, 0.1, 2400) is None

    def test_memory_that_others_use_does_not_count_under_auto(self) -> None:
        rank_bytes = 16 * 2400 * 10
        assert ranks("auto", facts(memory_bytes=25 * rank_bytes, free_memory_bytes=3 * rank_bytes)) == (3, 3)
        assert ranks("auto", facts(memory_bytes=25 * rank_bytes, free_memory_bytes=0)) == (1, 1)
        assert ranks("auto", facts(memory_bytes=25 * rank_bytes, free_memory_bytes=None)) == (25, 25)


class TestSettings:
    def test_a_rank_is_taken_and_nothing_is_fine(self) -> None:
        config = make_config("flexlora", {})
        config.check_settings({})
        config.check_settings({"rank": 3})

    @pytest.mark.parametrize("rank", [0, -1, 4097, 1.5, "8", True])
    def test_a_rank_that_is_none_is_refused(self, rank: Any) -> None:
        with pytest.raises(ValueError, match=r"client setting .rank. must be an integer in 1 \.\.\. 4096"):
            make_config("flexlora", {}).check_settings({"rank": rank})

    def test_an_unknown_setting_is_named(self) -> None:
        with pytest.raises(ValueError, match="unknown client setting 'ranks'"):
            make_config("flexlora", {}).check_settings({"rank": 4, "ranks": 4})


class TestConfig:
    @pytest.mark.parametrize("rank", [0, 4097, "most"])
    def test_a_rank_that_is_none_is_refused(self, rank: Any) -> None:
        with pytest.raises(ValueError, match="rank"):
            make_config("flexlora", {"rank": rank})

    @pytest.mark.parametrize(
        ("config", "trainable", "words"),
        [
            ({"rank": 9}, Lora(r=8), "rank: 9 is above the trainable's largest rank, 8"),
            ({"export_rank": 9}, Lora(r=8), "export_rank: 9 is above"),
            ({"scaling": "lora"}, Lora(r=8, use_rslora=True), "contradicts the trainable's use_rslora"),
            ({"aggregation": "stack"}, Lora(r=8, lora_dropout=0.1), "dropout"),
        ],
    )
    def test_what_does_not_go_with_the_trainable_is_refused(
        self, config: dict[str, Any], trainable: Lora, words: str
    ) -> None:
        with pytest.raises(ValueError, match=words):
            check_trainable("flexlora", make_config("flexlora", config), trainable)

    def test_a_higher_rank_in_a_pattern_counts(self) -> None:
        trainable = Lora(r=2, rank_pattern={"query": 9})
        check_trainable("flexlora", make_config("flexlora", {"rank": 9}), trainable)

    def test_it_asks_for_no_more_than_a_node_allows(self) -> None:
        config = make_config("flexlora", {})
        assert config.largest_rank(Lora(r=64), 8) == 8
        assert config.largest_rank(Lora(r=64), 100) == 64
        assert config.largest_rank(Lora(r=2, rank_pattern={"query": 9}), None) == 9
