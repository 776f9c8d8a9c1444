"""Modules and weights of a base model that a trainable names: from patterns to plain names.

PEFT reads a name as a regular expression in some places and as the end of a name in others. It receives plain names
only, and its result is compared with the intended one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import peft
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as CHOICES_OF_PEFT
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from federated.patterns import by_module_name, compile_patterns, first_fitting, is_name, unfitting
from federated.trainable import ALL_LINEAR, Full, Lora
from worker_agent.training.factors import factors_of
from worker_agent.training.job_errors import ModelError
from worker_agent.training.parameter_names import lies_within

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class LoraTargets:
    """Arguments for PEFT. `modules`: the names of the modules to adapt, or None if PEFT chooses."""

    modules: frozenset[str] | None
    fields: Mapping[str, Any]

    def check(self, model: peft.PeftModel, trainable: Lora, full_modules: Sequence[str]) -> None:
        """Raise ModelError unless modules, ranks and alphas match the patterns."""
        factors_by_module = factors_of(model)
        if self.modules is not None and self.modules != frozenset(model.targeted_module_names):
            odd = min(self.modules.symmetric_difference(model.targeted_module_names))
            raise _error("target_modules", f"PEFT cannot tell the module {odd!r} from others by its name")
        for module, factors in factors_by_module.items():
            if factors.rank != first_fitting(trainable.rank_pattern, module, trainable.r):
                raise _error("rank_pattern", f"PEFT cannot tell the module {module!r} from others by its name")
            if factors.alpha != trainable.alpha_of(module):
                raise _error("alpha_pattern", f"PEFT cannot tell the module {module!r} from others by its name")
        wrappers = {name for name, module in _base(model).named_modules() if isinstance(module, ModulesToSaveWrapper)}
        if difference := wrappers.symmetric_difference(full_modules):
            raise _error("modules_to_save", f"PEFT cannot tell {min(difference)!r} from other modules by its name")


def lora_targets(base: PreTrainedModel, trainable: Lora, full_modules: Sequence[str]) -> LoraTargets:
    """The fields of `peft.LoraConfig` that name modules. `full_modules` are trained in full, and thus not adapted.

    Raises ModelError (trainable_invalid) with the field and the pattern that fits no module.
    """
    names = module_names(base)
    fields = {
        "rank_pattern": _by_name(base, "rank_pattern", trainable.rank_pattern, names),
        "alpha_pattern": _by_name(base, "alpha_pattern", trainable.alpha_pattern, names),
        "layers_to_transform": None,
    }
    target_patterns, layers = _target_patterns(base, trainable), trainable.layers_to_transform
    if target_patterns is None or isinstance(target_patterns, str):
        # Otherwise PEFT would also adapt a linear map that is trained in full, and fail on it.
        full_maps = [name for name in full_modules if isinstance(base.get_submodule(name), nn.Linear)]
        return LoraTargets(None, fields | {"target_modules": target_patterns, "exclude_modules": full_maps or None})
    _refuse_unfitting(base, "target_modules", target_patterns, names)
    patterns = compile_patterns(target_patterns)
    module_set = frozenset(
        name
        for name in names
        if patterns.first(name) is not None
        and (not layers or name in target_patterns or _layer_of(name) in layers)
        and name not in full_modules
        and not lies_within(name, full_modules)
    )
    if not module_set:
        raise _error("target_modules", f"fits no module of a {base.config.model_type} that is not trained in full")
    as_they_are = not layers and all(map(is_name, target_patterns))
    return LoraTargets(
        module_set, fields | {"target_modules": list(target_patterns) if as_they_are else sorted(module_set)}
    )


def modules_in_full(base: PreTrainedModel, trainable: Lora, heads: Sequence[str]) -> tuple[str, ...]:
    """Names of the modules to train in full: the heads unless the trainable names others. Raises ModelError."""
    if trainable.modules_to_save is None:
        return tuple(heads)
    names = module_names(base)
    _refuse_unfitting(base, "modules_to_save", trainable.modules_to_save, names)
    patterns = compile_patterns(trainable.modules_to_save)
    return tuple(name for name in names if patterns.first(name) is not None)


def weights_in_full(base: PreTrainedModel, trainable: Full) -> frozenset[str]:
    """Names of the parameters to train. Raises ModelError for a pattern that fits none."""
    names = [name for name, _ in base.named_parameters()]
    if trainable.names is None:
        return frozenset(names)
    patterns = compile_patterns(trainable.names)
    for pattern in unfitting(trainable.names, (patterns.all_over(name) for name in names)):
        raise _error("names", f"{pattern!r} fits no weight of a {base.config.model_type}")
    return frozenset(name for name in names if patterns.first_over(name) is not None)


def module_names(base: nn.Module) -> list[str]:
    """The names of all modules except the model itself."""
    return [name for name, _ in base.named_modules() if name]


def _target_patterns(base: PreTrainedModel, trainable: Lora) -> tuple[str, ...] | str | None:
    """Patterns, or 'all-linear' or None, which PEFT interprets itself."""
    targets = trainable.target_modules
    if targets is None and trainable.layers_to_transform:
        choice = CHOICES_OF_PEFT.get(base.config.model_type)
        if not isinstance(choice, list | tuple | set):
            raise _error("layers_to_transform", f"needs target_modules for a {base.config.model_type}")
        return tuple(sorted(choice))
    return (targets,) if isinstance(targets, str) and targets != ALL_LINEAR else targets


def _layer_of(name: str) -> int | None:
    """The layer of a module, as PEFT finds it: the first number from the third component on, except the last."""
    return next((int(part) for part in name.split(".")[2:-1] if part.isdecimal()), None)


def _by_name(
    base: PreTrainedModel, field: str, values: Mapping[str, _Value], names: Sequence[str]
) -> dict[str, _Value]:
    _refuse_unfitting(base, field, tuple(values), names)
    return by_module_name(values, names)


def _refuse_unfitting(base: PreTrainedModel, field: str, texts: tuple[str, ...], names: Iterable[str]) -> None:
    patterns = compile_patterns(texts)
    for pattern in unfitting(texts, (patterns.all_of(name) for name in names)):
        raise _error(field, f"{pattern!r} fits no module of a {base.config.model_type}")


def _base(model: peft.PeftModel) -> nn.Module:
    base: nn.Module = model.get_base_model()
    return base


def _error(field: str, why: str) -> ModelError:
    return ModelError("trainable_invalid", f"{field}: {why}")
