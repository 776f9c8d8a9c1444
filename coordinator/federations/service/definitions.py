"""Resolution of a requested definition into the stored one. Errors name the field by JSON pointer."""

import math
import secrets
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from coordinator.auth.principals import Principal
from coordinator.errors import FieldError, Unprocessable
from coordinator.federations.schemas import Definition, FederationCreate
from coordinator.federations.service.initial_adapter import resolve_initial_adapter
from coordinator.web.problem_details import invalid, pointer_to
from federated import registry
from federated.bounds import MAX_LARGE
from federated.task import reported_metrics

_NOT_DEFINITION = {"name", "organization_id"}


def resolve_definition(session: Session, principal: Principal, request: Definition) -> dict[str, Any]:
    """The definition as stored: complete, with defaults, the algorithm's revision and the seed.

    Raises Unprocessable for an unknown algorithm, an invalid config, a number that is not finite, a trainable that
    the algorithm does not support, a metric that is never reported, and an initial adapter that does not exist or
    does not fit.
    """
    definition = request.model_dump(mode="json", exclude=_NOT_DEFINITION)
    definition["min_clients"] = request.clients_per_round if request.min_clients is None else request.min_clients
    definition["seed"] = secrets.randbelow(MAX_LARGE + 1) if request.seed is None else request.seed
    definition |= _algorithm(request)
    _check_finite(definition)
    _check_metrics(request)
    if request.initial_adapter is not None:
        definition["initial_adapter"] = resolve_initial_adapter(session, principal, request, request.initial_adapter)
    return definition


def parse(document: Mapping[str, Any]) -> FederationCreate:
    """Validates a request that was built from a stored definition. Raises Unprocessable."""
    try:
        return FederationCreate.model_validate(document)
    except ValidationError as error:
        raise invalid(_faults(error, document)) from None


def request_of(name: str, definition: Mapping[str, Any]) -> dict[str, Any]:
    """The request that resolves to this definition."""
    request = {key: value for key, value in definition.items() if key != "algorithm_revision"}
    initial = definition["initial_adapter"]
    if initial is not None:
        request["initial_adapter"] = {"federation_id": initial["federation_id"], "round": initial["round"]}
    return {**request, "name": name}


def _algorithm(request: Definition) -> dict[str, Any]:
    try:
        config = registry.make_config(request.algorithm, request.config)
    except registry.UnknownAlgorithm as error:
        raise _refusal("algorithm_unknown", "/algorithm", str(error)) from None
    except ValidationError as error:
        raise invalid(_faults(error, request.config, "/config")) from None
    try:
        config.check_served()
    except ValueError as error:
        raise _refusal("config_not_served", "/config", str(error)) from None
    try:
        registry.check_trainable(request.algorithm, config, request.trainable)
    except ValueError as error:
        raise _refusal("trainable_refused", "/trainable", str(error)) from None
    return {
        "config": config.model_dump(mode="json"),
        "algorithm_revision": registry.algorithm(request.algorithm).revision,
    }


def _check_finite(definition: Mapping[str, Any]) -> None:
    """Raises Unprocessable for NaN and infinity, which JSON and its digest cannot represent."""
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


def _check_metrics(request: Definition) -> None:
    """Raises Unprocessable for a metric that the task does not have, and for a stopping rule that can never apply."""
    metrics, stopping = reported_metrics(request.task), request.stopping
    for index, name in enumerate(request.task.metrics):
        if name not in metrics:
            raise _refusal("metric_undefined", f"/task/metrics/{index}", f"a {request.task.task} has no {name}")
    if stopping.metric is None:
        return
    names = [*metrics]
    if registry.algorithm(request.algorithm).personal:
        names += [f"own_{name}" for name in metrics]
    if stopping.metric not in names:
        detail = f"no evaluation of this federation reports {stopping.metric!r}; available: {', '.join(names)}"
        raise _refusal("stopping_metric_unknown", "/stopping/metric", detail)
    if stopping.target is None and stopping.patience is None:
        raise _refusal("stopping_incomplete", "/stopping", "a metric alone stops nothing: set target or patience")
    if request.evaluation.every is None:
        detail = f"{stopping.metric!r} is measured by evaluations, but evaluation.every is null (never)"
        raise _refusal("stopping_without_evaluation", "/stopping/metric", detail)


def _refusal(code: str, pointer: str, detail: str) -> Unprocessable:
    return Unprocessable(code, f"`{pointer}`: {detail}", errors=[FieldError(pointer=pointer, detail=detail)])


def _faults(error: ValidationError, document: Mapping[str, Any], prefix: str = "") -> list[FieldError]:
    return [
        FieldError(pointer=prefix + pointer_to(fault["loc"], document), detail=fault["msg"])
        for fault in error.errors()
    ]
