"""Prompt layers: slices of a prompt by layer, the separation score, and the selection of layers that travel.

L: layers, P: virtual tokens, W: width of a layer's keys and values together. PEFT keeps the prompts of all layers in
one matrix (P, L * W), layer after layer. Here each layer has its own tensor (P, W).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from federated.algorithm_kit.shared_tensors import last_linear_names
from federated.maths.spectrum import number_of_layers
from federated.trainable import PROMPT_EMBEDDINGS, ModelFacts

LAYER_SCORES = "layer_scores"
SHARES = "shares"
_FLOOR = 1e-5


def slice_name(layer: int) -> str:
    """The name under which one layer's prompts travel."""
    return f"{PROMPT_EMBEDDINGS}/layer.{layer}"


def slices(matrix: Tensor, layers: int) -> dict[str, Tensor]:
    """The prompts of each layer, (P, W), by name. matrix: (P, L * W). Copies, so that the matrix can be freed."""
    return {slice_name(layer): part.clone() for layer, part in enumerate(matrix.chunk(layers, dim=1))}


def join_slices(parts: Mapping[str, Tensor], layers: int) -> Tensor:
    """(P, L * W) from the prompts of all layers."""
    return torch.cat([parts[slice_name(layer)] for layer in range(layers)], dim=1)


def head_names(model: ModelFacts) -> list[str]:
    """Names of the head's tensors that are trained: those of its last linear map."""
    return last_linear_names([tensor for tensor in model.tensors if tensor.name != PROMPT_EMBEDDINGS])


def separation(outputs: Tensor) -> float:
    """Score of a layer: `sum(log(x) + 1 / x)` over the spectrum of its examples' cosines (FedPepTAO).

    outputs: (b, ...), one layer's for b examples, of which only the direction counts. x is an eigenvalue of the
    (b, b) cosine matrix, not below 0, plus 1e-5. High if the layer hardly distinguishes the examples.
    """
    flat = outputs.detach().reshape(len(outputs), -1).double()
    rows = flat / flat.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    values = torch.linalg.eigvalsh(rows @ rows.T).clamp(min=0) + _FLOOR
    return float((values.log() + 1 / values).sum())


def choose_layers(scores: Sequence[float], share: float, *, skip_last: bool, all_but_one: bool) -> list[int]:
    """The layers with the highest scores, ascending. The lower of two equal layers comes first.

    `share` of the layers, rounded, at least one, and with `all_but_one` never all. `skip_last` excludes the last.
    """
    layers = len(scores)
    eligible = range(layers - 1) if skip_last and layers > 1 else range(layers)
    limit = max(1, layers - 1) if all_but_one else layers
    count = number_of_layers(share, layers, most=min(limit, len(eligible)))
    return sorted(sorted(eligible, key=lambda layer: (-scores[layer], layer))[:count])
