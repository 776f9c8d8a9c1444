"""Removal of the prompts from single transformer layers, which PEFT's prefix tuning cannot express."""

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def without_prompts(layer: nn.Module, virtual_tokens: int) -> RemovableHandle:
    """Make a layer attend to the text only, until the handle is removed. Positions stay shifted, as in all layers."""

    def drop_prompts(
        module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        tokens = arguments[0].shape[1] if arguments else keywords["hidden_states"].shape[1]

        def cut(value: Any) -> Any:
            is_mask = isinstance(value, Tensor) and value.dim() == 4 and value.shape[-1] == tokens + virtual_tokens
            return value[..., virtual_tokens:] if is_mask else value

        other_keywords = {name: None if name == "past_key_values" else cut(value) for name, value in keywords.items()}
        return tuple(map(cut, arguments)), other_keywords

    return layer.register_forward_pre_hook(drop_prompts, with_kwargs=True)
