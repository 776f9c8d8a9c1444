"""Registry of algorithms: discovery, checks, and lookup by name.

Algorithms are the folders under `federated.algorithms`, and packages of other distributions with an entry point in
the group `fedloom.algorithms`. An entry point that cannot be used stops nothing: `unavailable_algorithms` lists it.

Importing this module, listing algorithms and creating configs do not load torch. Creating a half does, unless it
belongs to another distribution that loads torch with its package.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType, ModuleType
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


ENTRY_POINT_GROUP = "fedloom.algorithms"
KIT = "federated.algorithm_kit"


class UnknownAlgorithm(LookupError):
    """No algorithm of that name is installed. The message lists the installed ones."""

    def __init__(self, name: str, names: tuple[str, ...]) -> None:
        super().__init__(f"unknown algorithm {name!r}; there are: {', '.join(names)}")
        self.name = name
        self.names = names


class MisdeclaredAlgorithm(TypeError):
    """An invalid package of an algorithm. The message says how to fix it."""


@dataclass(frozen=True, slots=True)
class UnavailableAlgorithm:
    """An entry point that cannot be used. Anybody may read `reason`; `detail` is for whoever runs the process."""

    name: str
    distribution: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class _Installation:
    algorithms: Mapping[str, Algorithm]
    packages: Mapping[str, str]
    distributions: Mapping[str, str]
    unavailable: Sequence[UnavailableAlgorithm]


def algorithms() -> Mapping[str, Algorithm]:
    """All algorithms by name, sorted. Raises MisdeclaredAlgorithm for an invalid folder of `federated.algorithms`."""
    return _installation().algorithms


def unavailable_algorithms() -> Sequence[UnavailableAlgorithm]:
    """The entry points of the group `fedloom.algorithms` that cannot be used, with the reason."""
    return _installation().unavailable


def distribution_of(name: str) -> str | None:
    """The distribution that an algorithm comes from. None for those of this project."""
    return _installation().distributions.get(name)


def readme_of(name: str) -> str:
    """The algorithm's README. Raises UnknownAlgorithm."""
    package = importlib.import_module(_installation().packages[algorithm(name).name])
    return (_folder_of(package) / "README.md").read_text(encoding="utf-8")


def reload() -> None:
    """Look for algorithms again."""
    _installation.cache_clear()


@cache
def _installation() -> _Installation:
    own, packages = {}, {}
    for module in pkgutil.iter_modules(federated.algorithms.__path__):
        package = importlib.import_module(f"{federated.algorithms.__name__}.{module.name}")
        own[module.name] = _declaration_in(package, module.name)
        packages[module.name] = package.__name__
    others, distributions, unavailable = _of_other_distributions(own)
    for name, package in others.items():
        own[name], packages[name] = _declaration_in(package, name), package.__name__
    by_name = MappingProxyType(dict(sorted(own.items())))
    return _Installation(by_name, packages, distributions, unavailable)


def _of_other_distributions(
    own: Mapping[str, Algorithm],
) -> tuple[dict[str, ModuleType], dict[str, str], list[UnavailableAlgorithm]]:
    packages: dict[str, ModuleType] = {}
    distributions: dict[str, str] = {}
    unavailable = []
    points = [(point.dist.name if point.dist else "?", point) for point in entry_points(group=ENTRY_POINT_GROUP)]
    for distribution, point in sorted(points, key=lambda pair: (pair[1].name, pair[0])):
        try:
            if point.name in own or point.name in packages:
                raise MisdeclaredAlgorithm(f"there is another algorithm named {point.name!r}")
            package = importlib.import_module(point.module)
            _declaration_in(package, point.name)
        except MisdeclaredAlgorithm as error:
            unavailable.append(UnavailableAlgorithm(point.name, distribution, str(error), str(error)))
        except Exception as error:  # of code that somebody else wrote
            reason = f"its package cannot be imported ({type(error).__name__})"
            unavailable.append(UnavailableAlgorithm(point.name, distribution, reason, f"{reason}: {error}"))
        else:
            packages[point.name], distributions[point.name] = package, distribution
    return packages, distributions, unavailable


def _declaration_in(package: ModuleType, name: str) -> Algorithm:
    return check_declaration(getattr(package, "ALGORITHM", None), package.__name__, _folder_of(package), name)


def _folder_of(package: ModuleType) -> Path:
    return Path(str(package.__file__)).parent


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


def check_declaration(declaration: object, package: str, folder: Path, name: str | None = None) -> Algorithm:
    """The declaration of a package. `name`: of its entry point, by default that of the package itself.

    Raises MisdeclaredAlgorithm unless name, halves, config and README are valid.
    """
    name = name or package.rpartition(".")[2]
    if not isinstance(declaration, Algorithm):
        raise MisdeclaredAlgorithm(f"{package} must set ALGORITHM to a federated.contract.Algorithm")
    if declaration.name != name:
        raise MisdeclaredAlgorithm(
            f"{package} declares the name {declaration.name!r}; name it {name!r} as its folder or entry point"
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
    inside = module.startswith((f"{package}.", f"{KIT}."))
    if not (separator and class_name.isidentifier() and inside and importlib.util.find_spec(module)):
        raise MisdeclaredAlgorithm(f"{half!r} must be 'module:Class' with a module inside {package} or {KIT}")


def _load(half: str) -> Any:
    module, _, class_name = half.partition(":")
    return getattr(importlib.import_module(module), class_name)
