"""Lookup of the transformer layers of a session's model, with an error that lists the candidates."""

from collections.abc import Sequence

from torch import nn

from federated.contract import JobDeclined
from federated.session import TrainingSession

_MAX_LISTED = 8


def layers_of(session: TrainingSession, layers: Sequence[int]) -> list[nn.Module]:
    """The modules of these layers.

    Raises JobDeclined (layers_unknown), with the model's module lists, if the layers cannot be found.
    """
    try:
        modules = session.layers()
    except (StopIteration, RuntimeError):
        modules = ()
    if len(modules) <= max(layers):
        lists = [
            f"{name} ({len(module)})"
            for name, module in session.model.named_modules()
            if isinstance(module, nn.ModuleList)
        ]
        candidates = ", ".join(lists[:_MAX_LISTED]) or "none"
        raise JobDeclined(
            "layers_unknown",
            f"the layers of this {session.facts.model_type} cannot be told apart: {max(layers) + 1} are expected; "
            f"lists of modules are: {candidates}",
        )
    return [modules[layer] for layer in layers]
