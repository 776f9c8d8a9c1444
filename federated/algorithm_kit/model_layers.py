"""The layers of a session's model, or a refusal that says what was seen in their place."""

from collections.abc import Sequence

from torch import nn

from federated.contract import JobDeclined
from federated.session import TrainingSession

_MOST_NAMED = 8


def layers_of(session: TrainingSession, layers: Sequence[int]) -> list[nn.Module]:
    """The modules of these layers.

    Raises JobDeclined (layers_unknown), with the lists of modules seen, where they cannot be found.
    """
    try:
        found = session.layers()
    except (StopIteration, RuntimeError):
        found = ()
    if len(found) <= max(layers):
        named = session.model.named_modules()
        lists = [f"{name} ({len(module)})" for name, module in named if isinstance(module, nn.ModuleList)]
        seen = ", ".join(lists[:_MOST_NAMED]) or "none"
        expected = (
            f"the layers of this {session.facts.model_type} cannot be told apart: {max(layers) + 1} are expected"
        )
        raise JobDeclined("layers_unknown", f"{expected}; lists of modules are: {seen}")
    return [found[layer] for layer in layers]
