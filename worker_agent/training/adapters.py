"""A trainable (plain data) on a base model: the PEFT model, its facts, and its trainable tensors by canonical name.

PEFT's own draws are always overwritten: every tensor starts as `federated.maths.initialization` says, or from the
base model's value. A classifier's head always starts anew from the seed, also over files that hold one: it would
travel as a difference to weights that the exported adapter does not have.
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
from worker_agent.training.model_facts import initialisation, is_drawn, new_weight_std, shape_of, tensor_facts
from worker_agent.training.parameter_names import canonical_name, lies_within
from worker_agent.training.targets import lora_targets, modules_in_full, weights_in_full

_HEADS = ("classifier", "score")
_NAME_THEM = "name the modules to adapt in target_modules, such as q_proj and v_proj"


@dataclass(frozen=True, slots=True)
class AdaptedModel:
    """`trainables` and `seeded` (neither trained nor in the base model's files) by canonical name, sorted.

    `base_values` (float32, CPU): where the tensors begin that travel as a difference.
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
        """Every tensor at its start and rank, all trainables requiring a gradient, none held, and no dropout."""
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
        """Keep a hook in place until the model is restored."""
        self.hooks.append(hook)

    def resize(self, ranks: Mapping[str, int], scalings: Mapping[str, float]) -> None:
        """Other ranks and scales for the factors of these modules. Raises KeyError, ValueError."""
        for module, rank in ranks.items():
            if module not in self.factors:
                raise KeyError(f"module {module!r} has no LoRA factors here")
            self.factors[module].resize(rank, scalings[module])

    def require_gradients(self, frozen: Collection[str]) -> None:
        """All trainables require a gradient but the frozen. Raises KeyError for a name that is not trainable."""
        for name in frozen:
            if name not in self.trainables:
                raise KeyError(f"tensor {name!r} is not trainable here")
        for name, parameter in self.trainables.items():
            parameter.requires_grad_(name not in frozen)

    def set(self, name: str, value: Tensor) -> None:
        """Set a tensor; one with a base value is given as the difference. Raises KeyError, ValueError."""
        parameter = self.trainables.get(name, self.seeded.get(name))
        if parameter is None:
            raise KeyError(f"tensor {name!r} is not trainable here")
        if parameter.shape != value.shape:
            raise ValueError(f"tensor {name!r} has shape {list(value.shape)}, expected {list(parameter.shape)}")
        begin = self.base_values.get(name)
        with torch.no_grad():
            parameter.copy_(value if begin is None else begin + value.to("cpu", torch.float32))

    def get(self, name: str) -> Tensor:
        """A copy (float32, CPU) in the form `set` takes. Raises KeyError."""
        value = _copy(self.trainables[name])
        begin = self.base_values.get(name)
        return value if begin is None else value - begin


def adapt(loaded: LoadedBase, trainable: AnyTrainable, weights_sha256: str) -> AdaptedModel:
    """The base model with `trainable` on it; not yet at its start. Raises ModelError (trainable_invalid)."""
    base, heads = loaded.model, _heads(loaded)
    new = {name for name, _ in base.named_parameters() if name in loaded.new or name.split(".")[0] in heads}
    wrapped = _wrap(base, trainable, loaded.task_type, _Modules.of(base, trainable, new, heads))
    starts = _starts(wrapped, trainable, new, new_weight_std(base))
    trained = sorted(name for name, value in wrapped.parameters.items() if wrapped.is_trained(name, value))
    if not trained:
        raise ModelError("trainable_invalid", f"{trainable.kind}: nothing to train in a {base.config.model_type}")
    seeded = sorted(name for name in new.difference(trained) if starts[name].kind != "base")
    trainables = {name: _in_float32(wrapped.parameters[name]) for name in trained}
    kept = {name: _in_float32(wrapped.parameters[name]) for name in seeded}
    for name, parameter in wrapped.parameters.items():
        parameter.requires_grad_(name in trainables)
    return AdaptedModel(
        model=wrapped.model,
        base=base,
        facts=ModelFacts(
            **shape_of(base),
            **wrapped.modules,
            task_type=loaded.task_type,
            tensors=tensor_facts(trainables, starts),
            seeded=tensor_facts(kept, starts),
            weights_digest="sha256:" + weights_sha256,
        ),
        trainables=trainables,
        seeded=kept,
        base_values={name: _copy(trainables[name]) for name in trained if starts[name].kind == "base"},
        factors=factors_of(wrapped.model),
    )


def _starts(wrapped: "_Wrapped", trainable: AnyTrainable, new: set[str], std: float) -> dict[str, Initialization]:
    return {
        name: initialisation(name, tuple(value.shape), trainable, new, std)
        for name, value in wrapped.parameters.items()
    }


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float32, copy=True)


def _in_float32(parameter: nn.Parameter) -> nn.Parameter:
    parameter.data = parameter.data.float()
    return parameter


def _heads(loaded: LoadedBase) -> tuple[str, ...]:
    """A classifier's head: the modules PEFT knows as one, or else those that the files lack beside the backbone."""
    if loaded.task_type != "SEQ_CLS":
        return ()
    children = [name for name, _ in loaded.model.named_children()]
    known = tuple(name for name in children if name in _HEADS)
    lacking = {name.split(".")[0] for name in loaded.new} - {loaded.model.base_model_prefix}
    return known or tuple(name for name in children if name in lacking)


@dataclass(frozen=True, slots=True)
class _Modules:
    """`saved`: what PEFT wraps and an export must hold in full; `trained`: what of it is trained."""

    saved: tuple[str, ...]
    trained: tuple[str, ...]

    @classmethod
    def of(cls, base: PreTrainedModel, trainable: AnyTrainable, new: set[str], heads: Sequence[str]) -> "_Modules":
        trained = modules_in_full(base, trainable, heads) if isinstance(trainable, Lora) else tuple(heads)
        # PEFT wraps a module as a whole, so one of its parts cannot be named beside it.
        saved = list(heads)
        for module in sorted(trained):
            if module not in saved and not lies_within(module, saved):
                saved.append(module)
        for name, value in base.named_parameters():
            if name in new and is_drawn(name, tuple(value.shape)) and not lies_within(name, saved):
                saved.append(name.rpartition(".")[0])
        return cls(tuple(sorted(set(saved))), trained)


@dataclass(frozen=True, slots=True)
class _Wrapped:
    """A model, its parameters by canonical name, which of them are trained, and PEFT's resolved modules."""

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    is_trained: Callable[[str, nn.Parameter], bool]
    modules: Mapping[str, tuple[str, ...]]


def _wrap(base: PreTrainedModel, trainable: AnyTrainable, task_type: TaskType, modules: _Modules) -> _Wrapped:
    if isinstance(trainable, Full):
        names = weights_in_full(base, trainable)
        base.requires_grad_(True)
        return _Wrapped(base, dict(base.named_parameters()), lambda name, _: name in names, {})
    model = _peft_model(base, trainable, task_type, list(modules.saved))
    prefix = isinstance(trainable, Prefix)
    named = _by_canonical_name(model, prefix=prefix)

    def is_trained(name: str, parameter: nn.Parameter) -> bool:
        whole = lies_within(name, modules.saved)
        return parameter.requires_grad and (not whole or lies_within(name, modules.trained))

    targets = _target_modules(model)
    resolved = {"target_modules": targets, "modules_to_save": modules.saved}
    return _Wrapped(model, named, is_trained, resolved)


def _by_canonical_name(model: peft.PeftModel, *, prefix: bool) -> dict[str, nn.Parameter]:
    """All parameters in use. Raises ModelError where two have one name."""
    named: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        canonical = canonical_name(name, prefix=prefix)
        if canonical in named:
            raise ModelError("trainable_invalid", f"two weights have the name {canonical!r}; {_NAME_THEM}")
        if canonical is not None:
            named[canonical] = parameter
    return named


def _peft_model(base: PreTrainedModel, trainable: Lora | Prefix, task_type: str, saved: list[str]) -> peft.PeftModel:
    common: dict[str, Any] = {"task_type": task_type, "modules_to_save": list(saved) or None}
    try:
        if isinstance(trainable, Prefix):
            config = peft.PrefixTuningConfig(num_virtual_tokens=trainable.num_virtual_tokens, **common)
            model = peft.get_peft_model(base, config)
            _drop_prefix(model.prompt_encoder["default"], trainable.dropout)
            return model
        targets = lora_targets(base, trainable, saved)
        lora = trainable.model_dump(exclude={"kind", "modules_to_save"}) | dict(targets.fields)
        model = peft.get_peft_model(base, peft.LoraConfig(**lora, **common))
        _refuse_stacked(model)
        targets.check(model, trainable, saved)
        return model
    except (ValueError, KeyError, TypeError, NotImplementedError) as error:
        fields = trainable.model_dump_json(exclude_defaults=True)
        detail = f"{trainable.kind} {fields} on a {base.config.model_type}: {error}"
        raise ModelError("trainable_invalid", detail) from error


def _refuse_stacked(model: peft.PeftModel) -> None:
    """Raises ModelError for factors of several weights in one tensor, as those of fused experts."""
    for name, module in model.named_modules():
        if isinstance(module, ParamWrapper):
            detail = f"{canonical_name(name, prefix=False)!r} stacks its weights in one tensor, which has no factors"
            raise ModelError("trainable_invalid", f"{detail}; {_NAME_THEM}")


def _drop_prefix(encoder: nn.Module, share: float) -> None:
    """PEFT has no dropout on a prefix, P-tuning v2 has."""

    def dropped(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        return nn.functional.dropout(output, share, module.training)

    encoder.register_forward_hook(dropped)


def _target_modules(model: peft.PeftModel) -> tuple[str, ...]:
    chosen = getattr(model.peft_config["default"], "target_modules", None)
    if isinstance(chosen, str):
        chosen = model.targeted_module_names
    return tuple(sorted(chosen or ()))
