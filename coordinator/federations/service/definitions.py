"""Makes the definition that is kept of one that was asked for. Errors name the field by JSON pointer."""

import math
import secrets
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from coordinator.auth.principals import Principal
from coordinator.errors import FieldError, Unprocessable
from coordinator.federations.schemas import Definition, FederationCreate
from coordinator.federations.service import initial_adapter
from coordinator.web.problem_details import invalid, pointer_to
from federated import registry
from federated.bounds import MAX_LARGE
from federated.task import reported_metrics

_NOT_DEFINITION = {"name", "organization_id"}


def definition_of(session: Session, principal: Principal, wish: Definition) -> dict[str, Any]:
    """The definition as it is kept: whole, with defaults, the algorithm's revision and the seed.

    Raises Unprocessable for an unknown algorithm, its config, a number that is not finite, a trainable it does not
    admit, a metric that cannot come, an initial adapter that is not there or from which it cannot go on.
    """
    made = wish.model_dump(mode="json", exclude=_NOT_DEFINITION)
    made["min_clients"] = wish.clients_per_round if wish.min_clients is None else wish.min_clients
    made["seed"] = secrets.randbelow(MAX_LARGE + 1) if wish.seed is None else wish.seed
    made |= _algorithm(wish)
    _check_finite(made)
    _check_metrics(wish)
    if wish.initial_adapter is not None:
        made["initial_adapter"] = initial_adapter.initial_adapter(session, principal, wish, wish.initial_adapter)
    return made


def parse(document: Mapping[str, Any]) -> FederationCreate:
    """A request put together from a kept definition and changes. Raises Unprocessable."""
    try:
        return FederationCreate.model_validate(document)
    except ValidationError as error:
        raise invalid(_faults(error, document)) from None


def request_of(name: str, definition: Mapping[str, Any]) -> dict[str, Any]:
    """The request that would make this definition again."""
    asked = {key: value for key, value in definition.items() if key != "algorithm_revision"}
    initial = definition["initial_adapter"]
    if initial is not None:
        asked["initial_adapter"] = {"federation_id": initial["federation_id"], "round": initial["round"]}
    return {**asked, "name": name}


def _algorithm(wish: Definition) -> dict[str, Any]:
    try:
        config = registry.make_config(wish.algorithm, wish.config)
    except registry.UnknownAlgorithm as error:
        raise _bad("algorithm_unknown", "/algorithm", str(error)) from None
    except ValidationError as error:
        raise invalid(_faults(error, wish.config, "/config")) from None
    try:
        config.check_served()
    except ValueError as error:
        raise _bad("config_not_served", "/config", str(error)) from None
    try:
        registry.check_trainable(wish.algorithm, config, wish.trainable)
    except ValueError as error:
        raise _bad("trainable_refused", "/trainable", str(error)) from None
    return {
        "config": config.model_dump(mode="json"),
        "algorithm_revision": registry.algorithm(wish.algorithm).revision,
    }


def _check_finite(definition: Mapping[str, Any]) -> None:
    """Raises Unprocessable for NaN and infinity, which JSON and a digest of it do not have."""
    waiting: list[tuple[tuple[int | str, ...], object]] = [((), definition)]
    faults: list[FieldError] = []
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, float) and not math.isfinite(value):
            faults.append(FieldError(pointer=pointer_to(path, definition), detail="must be a finite number"))
        inner = value.items() if isinstance(value, Mapping) else enumerate(value if isinstance(value, list) else ())
        waiting += [((*path, key), part) for key, part in inner]
    if faults:
        raise invalid(faults)


def _check_metrics(wish: Definition) -> None:
    """Raises Unprocessable for a metric that the task does not have, and a stopping rule that could never apply."""
    reported, stopping = reported_metrics(wish.task), wish.stopping
    for index, name in enumerate(wish.task.metrics):
        if name not in reported:
            raise _bad("metric_undefined", f"/task/metrics/{index}", f"a {wish.task.task} has no {name}")
    if stopping.metric is None:
        return
    names = [*reported]
    if registry.algorithm(wish.algorithm).personal:
        names += [f"own_{name}" for name in reported]
    if stopping.metric not in names:
        detail = f"no evaluation of this federation tells {stopping.metric!r}; there are: {', '.join(names)}"
        raise _bad("stopping_metric_unknown", "/stopping/metric", detail)
    if stopping.target is None and stopping.patience is None:
        raise _bad("stopping_incomplete", "/stopping", "a metric alone ends nothing: give a target or a patience")
    if wish.evaluation.every is None:
        detail = f"{stopping.metric!r} comes of evaluations, and evaluation.every is null: never"
        raise _bad("stopping_without_evaluation", "/stopping/metric", detail)


def _bad(code: str, pointer: str, detail: str) -> Unprocessable:
    return Unprocessable(code, f"`{pointer}`: {detail}", errors=[FieldError(pointer=pointer, detail=detail)])


def _faults(error: ValidationError, document: Mapping[str, Any], prefix: str = "") -> list[FieldError]:
    return [
        FieldError(pointer=prefix + pointer_to(fault["loc"], document), detail=fault["msg"])
        for fault in error.errors()
    ]
