"""Finds every algorithm under `federated.algorithms`, checks it, and hands it out by name.

Importing this module, listing algorithms and making configs load no torch; making a half does.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import federated.algorithms
from federated.contract import (
    Algorithm,
    AlgorithmConfig,
    AnyTrainable,
    ClientHalf,
    LedgerInvalid,
    LedgerWeights,
    ServerHalf,
)

if TYPE_CHECKING:
    from federated.payloads.payload import Payload


class UnknownAlgorithm(LookupError):
    """No algorithm of that name is installed; the text lists those that are."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"unknown algorithm {name!r}; there are: {', '.join(known)}")
        self.name = name
        self.known = known


class MisdeclaredAlgorithm(TypeError):
    """A folder under `federated.algorithms` that does not keep to the form; the text says how to mend it."""


@cache
def algorithms() -> Mapping[str, Algorithm]:
    """All algorithms by name, sorted. Raises MisdeclaredAlgorithm."""
    found = {}
    for module in sorted(pkgutil.iter_modules(federated.algorithms.__path__), key=lambda module: module.name):
        package = importlib.import_module(f"{federated.algorithms.__name__}.{module.name}")
        folder = Path(str(package.__file__)).parent
        found[module.name] = checked(getattr(package, "ALGORITHM", None), package.__name__, folder)
    return MappingProxyType(found)


def algorithm(name: str) -> Algorithm:
    """The algorithm called `name`. Raises UnknownAlgorithm."""
    known = algorithms()
    if name not in known:
        raise UnknownAlgorithm(name, tuple(known))
    return known[name]


def make_config(name: str, values: Mapping[str, Any]) -> AlgorithmConfig:
    """The algorithm's config from JSON values. Raises UnknownAlgorithm, pydantic.ValidationError."""
    return algorithm(name).config.model_validate(dict(values))


def check_trainable(name: str, config: AlgorithmConfig, trainable: AnyTrainable) -> None:
    """Raise ValueError unless the algorithm, with this config, can train `trainable`."""
    admitted = algorithm(name).trainables
    if trainable.kind not in admitted:
        raise ValueError(f"{name} does not train {trainable.kind!r}; it trains: {', '.join(sorted(admitted))}")
    config.check_trainable(trainable)


def server_half(name: str, config: AlgorithmConfig, trainable: AnyTrainable) -> ServerHalf:
    """The half that runs in the coordinator. Raises UnknownAlgorithm."""
    return cast("ServerHalf", _load(algorithm(name).server)(config, trainable))


def client_half(name: str, config: AlgorithmConfig, trainable: AnyTrainable) -> ClientHalf:
    """The half that runs in a worker. Raises UnknownAlgorithm."""
    return cast("ClientHalf", _load(algorithm(name).client)(config, trainable))


def ledger_weights(ledger: "Payload") -> LedgerWeights:
    """What a ledger makes of a base model, by the algorithm that its facts name. Raises LedgerInvalid."""
    name = ledger.facts.get("algorithm")
    found = algorithms().get(str(name))
    if found is None or found.ledger is None:
        raise LedgerInvalid(f"fact 'algorithm' is {name!r}, which is no algorithm here that writes ledgers")
    made: LedgerWeights = _load(found.ledger)(ledger)
    return made


def checked(declared: object, package: str, folder: Path) -> Algorithm:
    """What a folder declares, or MisdeclaredAlgorithm: name, halves, config and README must keep to the form."""
    name = package.rpartition(".")[2]
    if not isinstance(declared, Algorithm):
        raise MisdeclaredAlgorithm(f"{package} must set ALGORITHM to a federated.contract.Algorithm")
    if declared.name != name:
        raise MisdeclaredAlgorithm(f"{package} declares the name {declared.name!r}; name it {name!r} as its folder")
    if not (isinstance(declared.config, type) and issubclass(declared.config, AlgorithmConfig)):
        raise MisdeclaredAlgorithm(f"the config of {name} must derive from federated.contract.AlgorithmConfig")
    for half in (declared.server, declared.client, *([declared.ledger] if declared.ledger else [])):
        _check_half(half, package)
    if not (folder / "README.md").is_file():
        raise MisdeclaredAlgorithm(f"{package} needs a README.md beside its __init__.py")
    return declared


def _check_half(half: str, package: str) -> None:
    module, separator, class_name = half.partition(":")
    inside = module.startswith(f"{package}.")
    if not (separator and class_name.isidentifier() and inside and importlib.util.find_spec(module)):
        raise MisdeclaredAlgorithm(f"{half!r} must be 'module:Class' with a module inside {package}")


def _load(half: str) -> Any:
    module, _, class_name = half.partition(":")
    return getattr(importlib.import_module(module), class_name)
