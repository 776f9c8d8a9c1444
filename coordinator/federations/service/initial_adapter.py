"""Initial adapter of a federation: lookup, and the check that the new definition can continue from it.

The definitions are compared on creation, before any client describes its model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session

from coordinator.artifacts import service as artifacts
from coordinator.auth.principals import Principal
from coordinator.clients import service as clients
from coordinator.errors import FieldError, Forbidden, NotFound, Unprocessable
from coordinator.federations.schemas import Definition, InitialAdapter
from coordinator.models import Federation
from coordinator.rounds import service as rounds
from federated import registry
from federated.patterns import compile_patterns, first_fitting
from federated.trainable import ALL_LINEAR, PROMPT_EMBEDDINGS, Lora, ModelFacts, Prefix, Trainable

ADAPTER_TENSORS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
POINTER = "/initial_adapter"
_FACTORS_A = (".lora_A.weight", ".lora_embedding_A")
_TRAINABLE: TypeAdapter[Trainable] = TypeAdapter(Trainable)


@dataclass(frozen=True, slots=True)
class EarlierAdapter:
    """An exported adapter. `shapes`: canonical tensor name -> shape."""

    definition: Mapping[str, Any]
    model: ModelFacts
    trainable: Lora | Prefix
    shapes: Mapping[str, Sequence[int]]

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the base weights it was trained on."""
        return self.model.weights_digest.removeprefix("sha256:")


def resolve_initial_adapter(
    session: Session, principal: Principal, request: Definition, initial: InitialAdapter
) -> dict[str, Any]:
    """The entry of the definition: the adapter's round, its files' digests and its base weights' SHA-256.

    Raises Unprocessable if the adapter does not exist or the federation cannot continue from it.
    """
    try:
        earlier = clients.visible_federation(session, principal, initial.federation_id)
        rounds.check_may_download(session, principal, earlier)
        round_ = rounds.adapter_round(session, earlier.id, initial.round)
    except (NotFound, Forbidden) as error:
        raise _refusal("unknown", error.detail) from None
    before, now = earlier.definition["trainable"]["kind"], request.trainable.kind
    if before != now:
        raise _refusal("kind", f"that adapter has the kind {before!r}, this federation trains {now!r}")
    if not registry.algorithm(request.algorithm).goes_on:
        raise _refusal("algorithm", f"{request.algorithm} starts from the base model, not from an adapter")
    files = rounds.adapter_files(round_)
    if ADAPTER_TENSORS not in files:
        raise _refusal("kind", f"that round exported no adapter of factors or prompts, but: {', '.join(files)}")
    digest, config_digest = files[ADAPTER_TENSORS].digest, files[ADAPTER_CONFIG].digest
    adapter = _load_adapter(earlier, digest)
    for check in (_check_base, _check_task, _check_values, _check_prefix, _check_factors):
        check(adapter, request)
    identity = {"digest": digest, "config_digest": config_digest, "weights_sha256": adapter.weights_sha256}
    return {"federation_id": earlier.id, "round": round_.number, **identity}


def _load_adapter(federation: Federation, digest: str) -> EarlierAdapter:
    try:
        trainable = _TRAINABLE.validate_python(federation.definition["trainable"])
        model = ModelFacts.model_validate(federation.model_facts)
    except ValidationError:
        raise _refusal(
            "unreadable", "an earlier version defined that federation, in a form that this version cannot read"
        ) from None
    assert isinstance(trainable, Lora | Prefix)  # noqa: S101 - only these kinds export tensors
    wrapping = "base_model." if isinstance(trainable, Prefix) else "base_model.model."
    tensors = artifacts.own_header(digest).tensors
    shapes = {name.removeprefix(wrapping).replace(".base_layer.", "."): tensors[name].shape for name in tensors}
    return EarlierAdapter(federation.definition, model, trainable, shapes)


def _check_base(earlier: EarlierAdapter, request: Definition) -> None:
    """Compares base weights by SHA-256 if the request has one, otherwise by id and revision."""
    then, now = earlier.definition["base_model"], request.base_model
    if now.weights_sha256 is not None:
        if now.weights_sha256 != earlier.weights_sha256:
            detail = f"that adapter was trained on weights with the SHA-256 {earlier.weights_sha256}"
            raise _refusal("base_model", f"{detail}, this federation requires {now.weights_sha256}")
    elif (then["id"], then["revision"]) != (now.id, now.revision):
        names = [f"{name!r}" + (f" at {at!r}" if at else "") for name, at in _names(then, now.model_dump())]
        detail = f"that adapter was trained on {names[0]}, this federation names {names[1]}"
        same = f"if both have the same weights, set base_model.weights_sha256 to {earlier.weights_sha256!r}"
        raise _refusal("base_model", f"{detail}; {same}")


def _names(*models: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    return ((model["id"], model["revision"]) for model in models)


def _check_task(earlier: EarlierAdapter, request: Definition) -> None:
    """A classifier head fits only the same labels in the same order. Without a head, any task fits."""
    then, now = earlier.definition["task"], request.task
    if then["task"] != "sequence_classification" or then["cloze"] is not None:
        return
    if now.task != "sequence_classification" or now.cloze is not None:
        raise _refusal("task", "that adapter has a classifier head, which this federation's task does not use")
    if tuple(then["labels"]) != now.labels:
        raise _refusal("labels", "that adapter's head has other labels, or the same labels in another order")


def _check_values(earlier: EarlierAdapter, request: Definition) -> None:
    """Rejects tensors that start from the base value: updates hold differences, an adapter holds values."""
    for tensor in earlier.model.tensors:
        if tensor.initialisation.kind == "base" and tensor.name in earlier.shapes:
            detail = f"that adapter contains the base model's own {tensor.name!r}, trained"
            raise _refusal("values", f"{detail}; a federation continues only from factors, prompts and heads")


def _check_prefix(earlier: EarlierAdapter, request: Definition) -> None:
    if isinstance(request.trainable, Prefix) and PROMPT_EMBEDDINGS in earlier.shapes:
        then, now = earlier.shapes[PROMPT_EMBEDDINGS][0], request.trainable.num_virtual_tokens
        if then != now:
            raise _refusal("shape", f"that adapter has {then} virtual tokens, this federation {now}")


def _check_factors(earlier: EarlierAdapter, request: Definition) -> None:
    """Requires every adapted module to be adapted here at the same rank. The scale may differ."""
    if not (isinstance(request.trainable, Lora) and isinstance(earlier.trainable, Lora)):
        return
    for name in sorted(earlier.shapes):
        mark = next((mark for mark in _FACTORS_A if name.endswith(mark)), None)
        if mark is None:
            continue
        module = name.removesuffix(mark)
        if not _is_adapted(module, request.trainable):
            raise _refusal("targets", f"that adapter adapts {module!r}, this federation does not")
        then = _rank(earlier, name, module)
        now = first_fitting(request.trainable.rank_pattern, module, request.trainable.r)
        if then != now:
            raise _refusal("rank", f"that adapter has rank {then} at {module!r}, this federation {now}")


def _rank(earlier: EarlierAdapter, name: str, module: str) -> int:
    """Rank at which a module was exported: that of its trainable, unless the algorithm exports another."""
    shape = {tensor.name: tensor.shape for tensor in earlier.model.tensors}.get(name)
    if shape is not None and tuple(shape) == tuple(earlier.shapes[name]) and isinstance(earlier.trainable, Lora):
        return first_fitting(earlier.trainable.rank_pattern, module, earlier.trainable.r)
    return earlier.shapes[name][0]


def _is_adapted(module: str, trainable: Lora) -> bool:
    """True if a trainable adapts a module, or if PEFT or the model decides which modules are adapted."""
    full = trainable.modules_to_save
    if full and compile_patterns(full).first_over(module) is not None:
        return False
    targets = trainable.target_modules
    if targets is None or targets == ALL_LINEAR:
        return True
    patterns = (targets,) if isinstance(targets, str) else targets
    if compile_patterns(patterns).first(module) is None:
        return False
    layers = trainable.layers_to_transform
    return not layers or module in patterns or _layer_of(module) in layers


def _layer_of(module: str) -> int | None:
    """Layer of a module, determined as on the nodes: the first number among the third to last-but-one components."""
    return next((int(part) for part in module.split(".")[2:-1] if part.isdecimal()), None)


def _refusal(what: str, detail: str) -> Unprocessable:
    code, errors = f"initial_adapter_{what}", [FieldError(pointer=POINTER, detail=detail)]
    return Unprocessable(code, f"`{POINTER}`: {detail}", errors=errors)
