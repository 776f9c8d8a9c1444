"""Gradient and Hessian of losses with a closed form."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from federated.maths.curvature import Curvature


def test_a_quadratics_gradient_and_hessian_are_its_matrix() -> None:
    matrix = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, -1.0], [0.0, -1.0, 4.0]])
    first, second = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([[-1.0]], requires_grad=True)
    joined = torch.cat([first, second.reshape(-1)])
    curvature = Curvature(joined @ matrix @ joined / 2, [first, second])
    assert torch.equal(curvature.gradient, matrix @ joined.detach())
    for column in torch.eye(3):
        assert torch.equal(curvature.times(column), matrix @ column)


def test_a_parameter_that_the_loss_is_linear_in_has_no_curvature() -> None:
    bent, straight = torch.tensor([2.0], requires_grad=True), torch.tensor([5.0], requires_grad=True)
    curvature = Curvature((bent**3).sum() + 4 * straight.sum(), [bent, straight])
    assert curvature.gradient.tolist() == [12.0, 4.0]
    assert curvature.times(torch.ones(2)).tolist() == [12.0, 0.0]


class OnceCubed(torch.autograd.Function):
    """x ** 3 without a second derivative."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        context.save_for_backward(value)
        return value**3

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (value,) = context.saved_tensors
        found: Tensor = 3 * value**2 * gradient
        return found


def test_a_loss_that_can_be_differentiated_once_is_refused() -> None:
    value = torch.tensor([2.0], requires_grad=True)
    cubed: Any = OnceCubed.apply
    with pytest.raises(RuntimeError, match="differentia"):
        Curvature((cubed(value) * value).sum(), [value])
