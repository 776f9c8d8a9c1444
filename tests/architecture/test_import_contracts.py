"""Every import contract holds, and each of them is able to fail: it is broken once in a copy of the tree."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sizes import ROOT

PACKAGES = ("federated", "coordinator", "worker_agent", "benchmarks", "deploy", "examples", "tests")
BREAKS = {
    "packages": ("federated/schedule.py", "import coordinator.settings"),
    "products-alone": ("coordinator/jobs/service/leasing.py", "import deploy.pin_images"),
    "examples-alone": ("examples/quickstart/quiet.py", "import benchmarks.report"),
    "programs-without-tests": ("benchmarks/report.py", "import tests.support.memory"),
    "tests-of-the-shared-package": ("tests/federated/test_simulation.py", "import examples.quickstart.quiet"),
    "coordinator-tower": ("coordinator/jobs/service/leasing.py", "import coordinator.rounds.service"),
    "domain-tower": ("coordinator/rounds/lifecycle.py", "import coordinator.rounds.service"),
    "private-repositories": ("coordinator/jobs/endpoints.py", "import coordinator.jobs.repository"),
    "federated-tower": ("federated/payloads/payload.py", "import federated.contract"),
    "independent-algorithms": ("federated/algorithms/fedavg/config.py", "import federated.algorithms.fedother"),
    "unnamed-algorithms": ("federated/simulation.py", "import federated.algorithms.fedavg"),
    "unimported-halves": ("federated/algorithms/fedavg/config.py", "import federated.algorithms.fedavg.server"),
    "light-web": ("coordinator/jobs/service/leasing.py", "import torch"),
    "pure-federated": ("federated/contract.py", "import httpx"),
    "one-decoder": ("coordinator/rounds/service/claims.py", "import federated.payloads.payload"),
    "worker-tower": ("worker_agent/node/policy.py", "import worker_agent.runtime.executor"),
    "acyclic-agent": ("worker_agent/training/data.py", "import worker_agent.training.summary"),
    "light-agent": ("worker_agent/runtime/executor.py", "import torch"),
}


def lint(folder: Path, contract: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    return subprocess.run(
        [*program, "--contract", contract, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    other = tmp_path / "federated/algorithms/fedother"
    other.mkdir()
    (other / "__init__.py").write_text('"""A second algorithm."""\n')
    return tmp_path


@pytest.mark.parametrize("contract", BREAKS)
def test_a_contract_fails_when_it_is_broken(copy: Path, contract: str) -> None:
    whole = lint(copy, contract)
    assert "Contracts: 1 kept, 0 broken" in whole.stdout, whole.stdout
    file, statement = BREAKS[contract]
    assert (copy / file).is_file(), f"{file} is gone: break the contract in one that is there"
    with (copy / file).open("a") as module:
        module.write(f"\n{statement}\n")
    broken = lint(copy, contract)
    assert "Contracts: 0 kept, 1 broken" in broken.stdout, broken.stdout
    assert broken.returncode == 1


def test_every_contract_is_among_those_proven() -> None:
    import tomllib

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert {contract["id"] for contract in contracts} == set(BREAKS)
