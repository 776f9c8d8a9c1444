"""A trainable (plain data) applied to a base model: the PEFT model, its facts, and its trainable tensors by name.

PEFT's own draws are always overwritten: every tensor starts as `federated.maths.initialization` says, or from the
base model's value. A classifier's head always starts from the seed, even if the files contain one: otherwise it would
be sent as a difference to weights that the exported adapter does not have.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from federated.contract import AnyTrainable
from federated.maths.initialization import start
from federated.trainable import Full, Initialization, Lora, ModelFacts, Prefix, TaskType
from worker_agent.training.factors import Factors, factors_of
from worker_agent.training.job_errors import ModelError
from worker_agent.training.model import LoadedBase
from worker_agent.training.model_facts import initialization, is_drawn, new_weight_std, shape_of, tensor_facts
from worker_agent.training.parameter_names import canonical_name, lies_within
from worker_agent.training.targets import lora_targets, modules_in_full, weights_in_full

_HEADS = ("classifier", "score")
_NAME_THEM = "name the modules to adapt in target_modules, such as q_proj and v_proj"


@dataclass(frozen=True, slots=True)
class AdaptedModel:
    """`trainables` and `seeded` (neither trained nor in the base model's files) by canonical name, sorted.

    `base_values` (float32, CPU): initial values of the tensors that are sent as a difference.
    """

    model: nn.Module
    base: PreTrainedModel
    facts: ModelFacts
    trainables: Mapping[str, nn.Parameter]
    seeded: Mapping[str, nn.Parameter]
    base_values: Mapping[str, Tensor]
    factors: Mapping[str, Factors]
    hooks: list[RemovableHandle] = field(default_factory=list)

    def restore(self, federation_seed: int) -> None:
        """Reset every tensor, rank and hook, require a gradient for all trainables, and switch to evaluation."""
        for factors in self.factors.values():
            factors.restore()
        while self.hooks:
            self.hooks.pop().remove()
        for facts in (*self.facts.tensors, *self.facts.seeded):
            self.set(facts.name, start(federation_seed, facts))
        self.require_gradients(())
        for parameter in self.trainables.values():
            parameter.grad = None
        self.model.eval()

    def hold(self, hook: RemovableHandle) -> None:
        """Keep a hook until the model is restored."""
        self.hooks.append(hook)

    def resize(self, ranks: Mapping[str, int], scalings: Mapping[str, float]) -> None:
        """Change ranks and scales of these modules' factors. Raises KeyError, ValueError."""
        for module, rank in ranks.items():
            if module not in self.factors:
                raise KeyError(f"module {module!r} has no LoRA factors here")
            self.factors[module].resize(rank, scalings[module])

    def require_gradients(self, frozen_names: Collection[str]) -> None:
        """Require a gradient for all trainables except the frozen ones. Raises KeyError for an unknown name."""
        for name in frozen_names:
            if name not in self.trainables:
                raise KeyError(f"tensor {name!r} is not trainable here")
        for name, parameter in self.trainables.items():
            parameter.requires_grad_(name not in frozen_names)

    def set(self, name: str, value: Tensor) -> None:
        """Set a tensor; `value` is the difference if it has a base value. Raises KeyError, ValueError."""
        parameter = self.trainables.get(name, self.seeded.get(name))
        if parameter is None:
            raise KeyError(f"tensor {name!r} is not trainable here")
        if parameter.shape != value.shape:
            raise ValueError(f"tensor {name!r} has shape {list(value.shape)}, expected {list(parameter.shape)}")
        begin = self.base_values.get(name)
        with torch.no_grad():
            parameter.copy_(value if begin is None else begin + value.to("cpu", torch.float32))

    def get(self, name: str) -> Tensor:
        """A copy (float32, CPU) in the form that `set` accepts. Raises KeyError."""
        value = _copy(self.trainables[name])
        begin = self.base_values.get(name)
        return value if begin is None else value - begin


def adapt(source: LoadedBase, trainable: AnyTrainable, weights_sha256: str) -> AdaptedModel:
    """The base model with `trainable` on it, before `restore`. Raises ModelError (trainable_invalid)."""
    base, heads = source.model, _heads(source)
    new = {name for name, _ in base.named_parameters() if name in source.new or name.split(".")[0] in heads}
    wrapper = _wrap(base, trainable, source.task_type, _Modules.of(base, trainable, new, heads))
    starts = _starts(wrapper, trainable, new, new_weight_std(base))
    trained_names = sorted(name for name, value in wrapper.parameters.items() if wrapper.is_trained(name, value))
    if not trained_names:
        raise ModelError("trainable_invalid", f"{trainable.kind}: nothing to train in a {base.config.model_type}")
    seeded_names = sorted(name for name in new.difference(trained_names) if starts[name].kind != "base")
    trainables = {name: _in_float32(wrapper.parameters[name]) for name in trained_names}
    seeded_parameters = {name: _in_float32(wrapper.parameters[name]) for name in seeded_names}
    for name, parameter in wrapper.parameters.items():
        parameter.requires_grad_(name in trainables)
    return AdaptedModel(
        model=wrapper.model,
        base=base,
        facts=ModelFacts(
            **shape_of(base),
            **wrapper.modules,
            task_type=source.task_type,
            tensors=tensor_facts(trainables, starts),
            seeded=tensor_facts(seeded_parameters, starts),
            weights_digest="sha256:" + weights_sha256,
        ),
        trainables=trainables,
        seeded=seeded_parameters,
        base_values={name: _copy(trainables[name]) for name in trained_names if starts[name].kind == "base"},
        factors=factors_of(wrapper.model),
    )


def _starts(wrapper: "_Wrapper", trainable: AnyTrainable, new: set[str], std: float) -> dict[str, Initialization]:
    return {
        name: initialization(name, tuple(value.shape), trainable, new, std)
        for name, value in wrapper.parameters.items()
    }


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float32, copy=True)


def _in_float32(parameter: nn.Parameter) -> nn.Parameter:
    parameter.data = parameter.data.float()
    return parameter


def _heads(source: LoadedBase) -> tuple[str, ...]:
    """A classifier's head: the modules PEFT knows as one, or else those outside the backbone that the files lack."""
    if source.task_type != "SEQ_CLS":
        return ()
    children = [name for name, _ in source.model.named_children()]
    peft_heads = tuple(name for name in children if name in _HEADS)
    lacking = {name.split(".")[0] for name in source.new} - {source.model.base_model_prefix}
    return peft_heads or tuple(name for name in children if name in lacking)


@dataclass(frozen=True, slots=True)
class _Modules:
    """`in_full`: modules that PEFT wraps and an export contains in full. `with_gradient`: those of them to train."""

    in_full: tuple[str, ...]
    with_gradient: tuple[str, ...]

    @classmethod
    def of(cls, base: PreTrainedModel, trainable: AnyTrainable, new: set[str], heads: Sequence[str]) -> "_Modules":
        full_names = modules_in_full(base, trainable, heads) if isinstance(trainable, Lora) else tuple(heads)
        # PEFT wraps a whole module, so its parts must not be named in addition.
        wrap_names = list(heads)
        for module in sorted(full_names):
            if module not in wrap_names and not lies_within(module, wrap_names):
                wrap_names.append(module)
        for name, value in base.named_parameters():
            if name in new and is_drawn(name, tuple(value.shape)) and not lies_within(name, wrap_names):
                wrap_names.append(name.rpartition(".")[0])
        return cls(tuple(sorted(set(wrap_names))), full_names)


@dataclass(frozen=True, slots=True)
class _Wrapper:
    """A model, its parameters by canonical name, a predicate for trained ones, and PEFT's resolved modules."""

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    is_trained: Callable[[str, nn.Parameter], bool]
    modules: Mapping[str, tuple[str, ...]]


def _wrap(base: PreTrainedModel, trainable: AnyTrainable, task_type: TaskType, modules: _Modules) -> _Wrapper:
    if isinstance(trainable, Full):
        names = weights_in_full(base, trainable)
        base.requires_grad_(True)
        return _Wrapper(base, dict(base.named_parameters()), lambda name, _: name in names, {})
    model = _peft_model(base, trainable, task_type, list(modules.in_full))
    prefix = isinstance(trainable, Prefix)
    parameters = _by_canonical_name(model, prefix=prefix)

    def is_trained(name: str, parameter: nn.Parameter) -> bool:
        whole = lies_within(name, modules.in_full)
        return parameter.requires_grad and (not whole or lies_within(name, modules.with_gradient))

    targets = _target_modules(model)
    module_fields = {"target_modules": targets, "modules_to_save": modules.in_full}
    return _Wrapper(model, parameters, is_trained, module_fields)


def _by_canonical_name(model: peft.PeftModel, *, prefix: bool) -> dict[str, nn.Parameter]:
    """All parameters in use. Raises ModelError if two have the same name."""
    parameters: dict[str, nn.Parameter] = {}
    for name, value in model.named_parameters():
        canonical = canonical_name(name, prefix=prefix)
        if canonical in parameters:
            raise ModelError("trainable_invalid", f"two weights have the name {canonical!r}; {_NAME_THEM}")
        if canonical is not None:
            parameters[canonical] = value
    return parameters


def _peft_model(
    base: PreTrainedModel, trainable: Lora | Prefix, task_type: str, full_modules: list[str]
) -> peft.PeftModel:
    common: dict[str, Any] = {"task_type": task_type, "modules_to_save": list(full_modules) or None}
    try:
        if isinstance(trainable, Prefix):
            config = peft.PrefixTuningConfig(num_virtual_tokens=trainable.num_virtual_tokens, **common)
            model = peft.get_peft_model(base, config)
            _drop_prefix(model.prompt_encoder["default"], trainable.dropout)
            return model
        targets = lora_targets(base, trainable, full_modules)
        lora = trainable.model_dump(exclude={"kind", "modules_to_save"}) | dict(targets.fields)
        model = peft.get_peft_model(base, peft.LoraConfig(**lora, **common))
        _refuse_stacked(model)
        targets.check(model, trainable, full_modules)
        return model
    except (ValueError, KeyError, TypeError, NotImplementedError) as error:
        fields = trainable.model_dump_json(exclude_defaults=True)
        detail = f"{trainable.kind} {fields} on a {base.config.model_type}: {error}"
        raise ModelError("trainable_invalid", detail) from error


def _refuse_stacked(model: peft.PeftModel) -> None:
    """Raises ModelError for factors of several weights in one tensor, such as fused experts."""
    for name, module in model.named_modules():
        if isinstance(module, ParamWrapper):
            detail = f"{canonical_name(name, prefix=False)!r} stacks its weights in one tensor, which has no factors"
            raise ModelError("trainable_invalid", f"{detail}; {_NAME_THEM}")


def _drop_prefix(encoder: nn.Module, share: float) -> None:
    """Add dropout on the prefix, as in P-tuning v2, which PEFT lacks."""

    def apply_dropout(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        return nn.functional.dropout(output, share, module.training)

    encoder.register_forward_hook(apply_dropout)


def _target_modules(model: peft.PeftModel) -> tuple[str, ...]:
    targets = getattr(model.peft_config["default"], "target_modules", None)
    if isinstance(targets, str):
        targets = model.targeted_module_names
    return tuple(sorted(targets or ()))
