"""The generated support messages of the demo: reproducible, balanced, and not separable by words."""

import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from examples.quickstart import held_out_phrases, training_phrases
from examples.quickstart.messages import LABELS, Corpus, Row, generate, organizations

SEEDS = (0, 1, 2)
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(params=SEEDS)
def corpus(request: pytest.FixtureRequest) -> Corpus:
    seed: int = request.param
    return generate(seed)


def texts(rows: list[Row]) -> list[str]:
    return [row["text"] for row in rows]


def labels(rows: list[Row]) -> list[str]:
    return [row["label"] for row in rows]


class TestASeed:
    def test_gives_the_same_corpus_in_every_interpreter(self) -> None:
        program = "from examples.quickstart.messages import generate; print(repr(generate(5)))"
        outputs = {
            subprocess.run(
                [sys.executable, "-c", program],
                cwd=REPOSITORY,
                env={"PYTHONHASHSEED": hash_seed},
                capture_output=True,
                check=True,
                text=True,
            ).stdout.strip()
            for hash_seed in ("1", "2")
        }
        assert outputs == {repr(generate(5))}

    def test_differs_from_another_seed_in_messages_and_in_their_order(self) -> None:
        first, second = generate(0), generate(1)
        assert first.test != second.test
        assert all(sorted(texts(first.train[name])) != sorted(texts(second.train[name])) for name in organizations())


class TestTrainingMessages:
    def test_every_organization_has_two_hundred(self, corpus: Corpus) -> None:
        assert {name: len(rows) for name, rows in corpus.train.items()} == dict.fromkeys(organizations(), 200)

    def test_every_organization_has_every_label_in_at_least_one_row_of_twenty(self, corpus: Corpus) -> None:
        for rows in corpus.train.values():
            counts = Counter(labels(rows))
            assert set(counts) == set(LABELS)
            assert min(counts.values()) >= 0.05 * len(rows)

    def test_two_labels_make_three_quarters_of_an_organization(self, corpus: Corpus) -> None:
        for rows in corpus.train.values():
            (_, largest), (_, second) = Counter(labels(rows)).most_common(2)
            assert largest >= 0.35 * len(rows)
            assert largest + second >= 0.75 * len(rows)

    def test_every_label_is_frequent_in_exactly_one_organization(self, corpus: Corpus) -> None:
        frequent = [label for rows in corpus.train.values() for label, _ in Counter(labels(rows)).most_common(2)]
        assert sorted(frequent) == sorted(LABELS)

    def test_the_first_rows_hold_more_than_one_label(self, corpus: Corpus) -> None:
        assert all(len(set(labels(rows[:40]))) > 2 for rows in corpus.train.values())


class TestHeldOutMessages:
    def test_are_balanced_over_the_labels(self, corpus: Corpus) -> None:
        assert Counter(labels(corpus.test)) == dict.fromkeys(LABELS, 51)

    def test_no_message_occurs_twice_anywhere(self, corpus: Corpus) -> None:
        everything = texts(corpus.test) + [text for rows in corpus.train.values() for text in texts(rows)]
        assert Counter(everything).most_common(1)[0][1] == 1

    def test_no_phrase_was_trained_on_or_is_used_for_two_labels(self) -> None:
        phrases = Counter(
            phrase
            for module in (training_phrases, held_out_phrases)
            for of_label in module.PHRASES.values()
            for group in of_label.values()
            for phrase in group
        )
        assert phrases.most_common(1)[0][1] == 1

    def test_counting_words_does_not_classify_them(self, corpus: Corpus) -> None:
        all_rows = [row for rows in corpus.train.values() for row in rows]
        model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000)).fit(
            texts(all_rows), labels(all_rows)
        )
        assert 0.3 <= model.score(texts(corpus.test), labels(corpus.test)) <= 0.65


def test_the_corpus_of_seed_0_is_pinned() -> None:
    """The documented accuracies were measured on these bytes; measure again before changing them."""
    assert (
        sha256(repr(generate(0)).encode()).hexdigest()
        == "a82540bc3af9805dab6ca8af27fad9d322acf74a626241e463d7d019f4ae6fea"
    )
