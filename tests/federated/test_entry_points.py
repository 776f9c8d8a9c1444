"""Algorithms of other distributions: found by their entry points, or left out with a reason."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from federated import registry
from federated.trainable import Lora
from tests.support.foreign_distribution import FEDPROX, Install, installing


@pytest.fixture
def add(tmp_path: Path) -> Iterator[Install]:
    with installing(tmp_path) as add:
        yield add


def reasons() -> dict[str, str]:
    return {algorithm.distribution: algorithm.reason for algorithm in registry.unavailable_algorithms()}


def test_one_is_found_beside_ours(add: Install) -> None:
    ours = list(registry.algorithms())
    add("fedloom-fedprox", "fedprox = fedprox", FEDPROX)
    assert list(registry.algorithms()) == sorted([*ours, "fedprox"])
    assert registry.distribution_of("fedprox") == "fedloom-fedprox"
    assert registry.distribution_of("fedavg") is None
    assert registry.readme_of("fedprox").startswith("# FedProx")
    config = registry.make_config("fedprox", {"mu": 0.5})
    registry.check_trainable("fedprox", config, Lora())
    assert type(registry.client_half("fedprox", config, Lora())).__module__ == "fedprox.client"
    assert type(registry.server_half("fedprox", config, Lora())).__name__ == "AveragingServer"


@pytest.mark.parametrize(
    ("name", "package", "reason"),
    [
        ("broken", {}, "its package cannot be imported (ModuleNotFoundError)"),
        ("broken", {"__init__.py": "import no_such_module"}, "its package cannot be imported (ModuleNotFoundError)"),
        ("broken", {"__init__.py": "raise OSError('/secret/path')"}, "its package cannot be imported (OSError)"),
        ("broken", {"__init__.py": "def"}, "its package cannot be imported (SyntaxError)"),
        ("broken", {"__init__.py": ""}, "broken must set ALGORITHM to a federated.contract.Algorithm"),
        ("fedavg", {"__init__.py": ""}, "there is another algorithm named 'fedavg'"),
        (
            "broken",
            {"__init__.py": "from federated.algorithms.fedavg import ALGORITHM"},
            "broken declares the name 'fedavg'; name it 'broken' as its folder or entry point",
        ),
    ],
)
def test_one_that_is_unusable_is_left_out_with_the_reason(
    add: Install, name: str, package: dict[str, str], reason: str
) -> None:
    ours = list(registry.algorithms())
    add("other", f"{name} = broken", {"README.md": "# Broken", **package} if package else {})
    assert list(registry.algorithms()) == ours
    assert reasons() == {"other": reason}


def test_of_two_with_one_name_the_first_distribution_has_it(add: Install) -> None:
    add("a-fedprox", "fedprox = fedprox", FEDPROX)
    add("b-fedprox", "fedprox = taken", {"__init__.py": ""})
    assert registry.distribution_of("fedprox") == "a-fedprox"
    assert reasons() == {"b-fedprox": "there is another algorithm named 'fedprox'"}


def test_a_half_that_is_not_sharded_refuses_to_join() -> None:
    half = registry.server_half("fedkseed", registry.make_config("fedkseed", {}), Lora())
    with pytest.raises(NotImplementedError, match="FedKSeedServer is not sharded"):
        half.join(None, [], None)  # type: ignore[arg-type]
