"""Attention that is differentiable twice, which fused kernels are not."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from federated.contract import JobDeclined

# Torch's own attention is differentiable twice in its plain form, which `sdpa_kernel` selects.
_PLAIN = ("eager", "sdpa")


@contextmanager
def differentiable_twice(base: PreTrainedModel) -> Iterator[None]:
    """Run the model without fused attention kernels inside the block.

    Raises JobDeclined (second_derivative_missing) for a model without another implementation.
    """
    configuration: Any = base.config
    implementation = configuration._attn_implementation
    try:
        if implementation not in _PLAIN:
            base.set_attn_implementation("eager")
    except ValueError as error:
        detail = (
            f"attn_implementation {implementation!r} cannot be differentiated twice, and there is no 'eager': {error}"
        )
        raise JobDeclined("second_derivative_missing", detail) from error
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        if implementation not in _PLAIN:
            base.set_attn_implementation(implementation)
