"""Registry of the algorithms under `federated.algorithms`: discovery, checks, and lookup by name.

Importing this module, listing algorithms and creating configs do not load torch. Creating a half does.
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
    """No algorithm of that name is installed. The message lists the installed ones."""

    def __init__(self, name: str, names: tuple[str, ...]) -> None:
        super().__init__(f"unknown algorithm {name!r}; there are: {', '.join(names)}")
        self.name = name
        self.names = names


class MisdeclaredAlgorithm(TypeError):
    """An invalid folder under `federated.algorithms`. The message says how to fix it."""


@cache
def algorithms() -> Mapping[str, Algorithm]:
    """All algorithms by name, sorted. Raises MisdeclaredAlgorithm."""
    by_name = {}
    for module in sorted(pkgutil.iter_modules(federated.algorithms.__path__), key=lambda module: module.name):
        package = importlib.import_module(f"{federated.algorithms.__name__}.{module.name}")
        folder = Path(str(package.__file__)).parent
        by_name[module.name] = check_declaration(getattr(package, "ALGORITHM", None), package.__name__, folder)
    return MappingProxyType(by_name)


def algorithm(name: str) -> Algorithm:
    """The algorithm called `name`. Raises UnknownAlgorithm."""
    by_name = algorithms()
    if name not in by_name:
        raise UnknownAlgorithm(name, tuple(by_name))
    return by_name[name]


def make_config(name: str, values: Mapping[str, Any]) -> AlgorithmConfig:
    """The algorithm's config from JSON values. Raises UnknownAlgorithm, pydantic.ValidationError."""
    return algorithm(name).config.model_validate(dict(values))


def check_trainable(name: str, config: AlgorithmConfig, trainable: AnyTrainable) -> None:
    """Raise ValueError unless the algorithm, with this config, can train `trainable`."""
    kinds = algorithm(name).trainables
    if trainable.kind not in kinds:
        raise ValueError(f"{name} does not train {trainable.kind!r}; it trains: {', '.join(sorted(kinds))}")
    config.check_trainable(trainable)


def server_half(name: str, config: AlgorithmConfig, trainable: AnyTrainable) -> ServerHalf:
    """The half that runs in the coordinator. Raises UnknownAlgorithm."""
    return cast("ServerHalf", _load(algorithm(name).server)(config, trainable))


def client_half(name: str, config: AlgorithmConfig, trainable: AnyTrainable) -> ClientHalf:
    """The half that runs in a worker. Raises UnknownAlgorithm."""
    return cast("ClientHalf", _load(algorithm(name).client)(config, trainable))


def ledger_weights(ledger: "Payload") -> LedgerWeights:
    """The weights of a ledger, computed by the algorithm that its facts name. Raises LedgerInvalid."""
    name = ledger.facts.get("algorithm")
    writer = algorithms().get(str(name))
    if writer is None or writer.ledger is None:
        raise LedgerInvalid(f"fact 'algorithm' is {name!r}, which is no algorithm here that writes ledgers")
    weights: LedgerWeights = _load(writer.ledger)(ledger)
    return weights


def check_declaration(declaration: object, package: str, folder: Path) -> Algorithm:
    """The declaration of a folder. Raises MisdeclaredAlgorithm unless name, halves, config and README are valid."""
    name = package.rpartition(".")[2]
    if not isinstance(declaration, Algorithm):
        raise MisdeclaredAlgorithm(f"{package} must set ALGORITHM to a federated.contract.Algorithm")
    if declaration.name != name:
        raise MisdeclaredAlgorithm(
            f"{package} declares the name {declaration.name!r}; name it {name!r} as its folder"
        )
    if not (isinstance(declaration.config, type) and issubclass(declaration.config, AlgorithmConfig)):
        raise MisdeclaredAlgorithm(f"the config of {name} must derive from federated.contract.AlgorithmConfig")
    for half in (declaration.server, declaration.client, *([declaration.ledger] if declaration.ledger else [])):
        _check_half(half, package)
    if not (folder / "README.md").is_file():
        raise MisdeclaredAlgorithm(f"{package} needs a README.md beside its __init__.py")
    return declaration


def _check_half(half: str, package: str) -> None:
    module, separator, class_name = half.partition(":")
    inside = module.startswith(f"{package}.")
    if not (separator and class_name.isidentifier() and inside and importlib.util.find_spec(module)):
        raise MisdeclaredAlgorithm(f"{half!r} must be 'module:Class' with a module inside {package}")


def _load(half: str) -> Any:
    module, _, class_name = half.partition(":")
    return getattr(importlib.import_module(module), class_name)
