"""An earlier adapter from which a federation is to go on: found, and held against what the federation is to be.

What two definitions say is compared when the second one is made, so that nobody describes for nothing.
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
class Earlier:
    """An adapter that was made. `shapes`: of its tensors by canonical name."""

    definition: Mapping[str, Any]
    model: ModelFacts
    trainable: Lora | Prefix
    shapes: Mapping[str, Sequence[int]]

    @property
    def weights_sha256(self) -> str:
        """The SHA-256 of the base weights it was trained on."""
        return self.model.weights_digest.removeprefix("sha256:")


def initial_adapter(
    session: Session, principal: Principal, wish: Definition, initial: InitialAdapter
) -> dict[str, Any]:
    """The earlier adapter as a definition keeps it: with its round, its files' digests and its base weights' SHA-256.

    Raises Unprocessable for one that is not there, and where the federation could not go on from it.
    """
    try:
        earlier = clients.visible_federation(session, principal, initial.federation_id)
        rounds.check_may_download(session, principal, earlier)
        made = rounds.adapter_round(session, earlier.id, initial.round)
    except (NotFound, Forbidden) as error:
        raise _bad("unknown", error.detail) from None
    before, now = earlier.definition["trainable"]["kind"], wish.trainable.kind
    if before != now:
        raise _bad("kind", f"that adapter is of the kind {before!r}, this federation trains {now!r}")
    if not registry.algorithm(wish.algorithm).goes_on:
        raise _bad("algorithm", f"{wish.algorithm} starts at the base model and cannot go on from an adapter")
    files = rounds.adapter_files(made)
    if ADAPTER_TENSORS not in files:
        raise _bad("kind", f"that round made no adapter of factors or prompts; it made: {', '.join(files)}")
    digest, config_digest = files[ADAPTER_TENSORS].digest, files[ADAPTER_CONFIG].digest
    adapter = _earlier(earlier, digest)
    for check in (_check_base, _check_task, _check_values, _check_prefix, _check_factors):
        check(adapter, wish)
    files_made = {"digest": digest, "config_digest": config_digest, "weights_sha256": adapter.weights_sha256}
    return {"federation_id": earlier.id, "round": made.number, **files_made}


def _earlier(federation: Federation, digest: str) -> Earlier:
    try:
        trainable = _TRAINABLE.validate_python(federation.definition["trainable"])
        model = ModelFacts.model_validate(federation.model_facts)
    except ValidationError:
        raise _bad(
            "unreadable", "that federation was defined by an earlier version, in words this one does not read"
        ) from None
    assert isinstance(trainable, Lora | Prefix)  # noqa: S101 - only their adapters have tensors
    wrapping = "base_model." if isinstance(trainable, Prefix) else "base_model.model."
    tensors = artifacts.own_header(digest).tensors
    shapes = {name.removeprefix(wrapping).replace(".base_layer.", "."): tensors[name].shape for name in tensors}
    return Earlier(federation.definition, model, trainable, shapes)


def _check_base(earlier: Earlier, wish: Definition) -> None:
    """The same weights: by their SHA-256 where the federation names it, by id and revision otherwise."""
    then, now = earlier.definition["base_model"], wish.base_model
    if now.weights_sha256 is not None:
        if now.weights_sha256 != earlier.weights_sha256:
            detail = f"that adapter was trained on weights with the SHA-256 {earlier.weights_sha256}"
            raise _bad("base_model", f"{detail}, this federation wants {now.weights_sha256}")
    elif (then["id"], then["revision"]) != (now.id, now.revision):
        names = [f"{name!r}" + (f" at {at!r}" if at else "") for name, at in _names(then, now.model_dump())]
        detail = f"that adapter was trained on {names[0]}, this federation names {names[1]}"
        same = f"if the two are the same, say so with base_model.weights_sha256 {earlier.weights_sha256!r}"
        raise _bad("base_model", f"{detail}; {same}")


def _names(*models: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    return ((model["id"], model["revision"]) for model in models)


def _check_task(earlier: Earlier, wish: Definition) -> None:
    """A head belongs to its classes, in their order. Without one, an adapter may go on with any task."""
    then, now = earlier.definition["task"], wish.task
    if then["task"] != "sequence_classification" or then["cloze"] is not None:
        return
    if now.task != "sequence_classification" or now.cloze is not None:
        raise _bad("task", "that adapter has a classifier's head, for which this federation's task has no place")
    if tuple(then["labels"]) != now.labels:
        raise _bad("labels", "that adapter's head is for other labels, or for the same ones in another order")


def _check_values(earlier: Earlier, wish: Definition) -> None:
    """What is trained from the base model's own value travels as a difference, and an adapter has the value."""
    for tensor in earlier.model.tensors:
        if tensor.initialisation.kind == "base" and tensor.name in earlier.shapes:
            detail = f"that adapter has trained the base model's own {tensor.name!r}"
            raise _bad("values", f"{detail}; a federation goes on from factors, prompts and heads alone")


def _check_prefix(earlier: Earlier, wish: Definition) -> None:
    if isinstance(wish.trainable, Prefix) and PROMPT_EMBEDDINGS in earlier.shapes:
        then, now = earlier.shapes[PROMPT_EMBEDDINGS][0], wish.trainable.num_virtual_tokens
        if then != now:
            raise _bad("shape", f"that adapter has {then} virtual tokens, this federation {now}")


def _check_factors(earlier: Earlier, wish: Definition) -> None:
    """Each adapted module is adapted here too, at the same rank. The scale may be another."""
    if not (isinstance(wish.trainable, Lora) and isinstance(earlier.trainable, Lora)):
        return
    for name in sorted(earlier.shapes):
        mark = next((mark for mark in _FACTORS_A if name.endswith(mark)), None)
        if mark is None:
            continue
        module = name.removesuffix(mark)
        if not _is_adapted(module, wish.trainable):
            raise _bad("targets", f"that adapter has factors of {module!r}, which this federation does not adapt")
        then = _rank(earlier, name, module)
        now = first_fitting(wish.trainable.rank_pattern, module, wish.trainable.r)
        if then != now:
            raise _bad("rank", f"that adapter has rank {then} at {module!r}, this federation {now}")


def _rank(earlier: Earlier, name: str, module: str) -> int:
    """The rank at which a module was exported: its trainable's, unless the algorithm exports another."""
    trained = {tensor.name: tensor.shape for tensor in earlier.model.tensors}.get(name)
    if trained is not None and tuple(trained) == tuple(earlier.shapes[name]) and isinstance(earlier.trainable, Lora):
        return first_fitting(earlier.trainable.rank_pattern, module, earlier.trainable.r)
    return earlier.shapes[name][0]


def _is_adapted(module: str, trainable: Lora) -> bool:
    """Whether a trainable adapts a module, as far as its own words say: not where PEFT or the model choose."""
    full = trainable.modules_to_save
    if full and compile_patterns(full).first_over(module) is not None:
        return False
    targets = trainable.target_modules
    if targets is None or targets == ALL_LINEAR:
        return True
    wanted = (targets,) if isinstance(targets, str) else targets
    if compile_patterns(wanted).first(module) is None:
        return False
    layers = trainable.layers_to_transform
    return not layers or module in wanted or _layer_of(module) in layers


def _layer_of(module: str) -> int | None:
    """The layer a module lies in, as nodes find it: the first number from the third component on, not the last."""
    return next((int(part) for part in module.split(".")[2:-1] if part.isdecimal()), None)


def _bad(what: str, detail: str) -> Unprocessable:
    code, errors = f"initial_adapter_{what}", [FieldError(pointer=POINTER, detail=detail)]
    return Unprocessable(code, f"`{POINTER}`: {detail}", errors=errors)
