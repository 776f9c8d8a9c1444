"""Metrics of a classifier, compared with scikit-learn's."""

import pytest
import torch
from sklearn import metrics as reference

from worker_agent.training.metrics import accuracy, confusion, f1, matthews


def drawn(classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets, predicted = torch.randint(classes, (2, 60), generator=generator)
    return targets, torch.where(torch.rand(60, generator=generator) < 0.5, targets, predicted)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [2, 3, 6])
def test_metrics_are_those_of_scikit_learn(classes: int, seed: int) -> None:
    targets, predicted = drawn(classes, seed)
    counts = confusion(targets, predicted, classes)
    average = "binary" if classes == 2 else "macro"
    assert counts.tolist() == reference.confusion_matrix(targets, predicted).tolist()
    assert accuracy(counts) == pytest.approx(reference.accuracy_score(targets, predicted))
    assert matthews(counts) == pytest.approx(reference.matthews_corrcoef(targets, predicted))
    assert f1(counts) == pytest.approx(reference.f1_score(targets, predicted, average=average))


def test_macro_f1_leaves_out_a_class_that_neither_occurs_nor_was_said() -> None:
    targets, predicted = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    expected = reference.f1_score(targets, predicted, average="macro")
    assert f1(confusion(targets, predicted, 3)) == pytest.approx(expected)


def test_one_class_alone_has_no_correlation() -> None:
    zeros = torch.zeros(4, dtype=torch.int64)
    counts = confusion(zeros, zeros, 2)
    assert (accuracy(counts), matthews(counts), f1(counts)) == (1.0, 0.0, 0.0)
