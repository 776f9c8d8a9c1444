"""Capabilities that this worker reports to the coordinator.

Facts about the device need torch, so a short-lived child process collects them.
"""

import importlib
import json
import multiprocessing
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict

from federated import __version__, registry
from federated.protocol import Capabilities, DatasetFacts
from worker_agent.errors import ConfigurationError
from worker_agent.settings import AgentSettings

DEVICE_MODULE = "worker_agent.training.device"
PACKAGES = (
    "fedloom",
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "numpy",
    "datasets",
    "accelerate",
    "bitsandbytes",
)
# CPU features that decide which kernels torch uses, and thus the bits of a result.
VECTOR_FLAGS = frozenset({"avx", "avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "sve"})


class Device(BaseModel):
    """The training device. Memory: of one device, or of the host without one. Free memory: at this moment."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    device: str
    device_name: str | None = None
    memory_bytes: int | None = None
    free_memory_bytes: int | None = None


def capabilities(settings: AgentSettings, device: Device) -> Capabilities:
    """Names that the policy permits, versions, and the device."""
    policy = settings.policy
    datasets = sorted(name for name in settings.datasets if policy.datasets is None or name in policy.datasets)
    return Capabilities(
        agent_version=__version__,
        algorithms=allowed_algorithms(settings),
        datasets=tuple(DatasetFacts(name=name) for name in datasets),
        models=tuple(sorted(settings.models)),
        slots=settings.slots,
        device=device.device,
        device_name=device.device_name,
        memory_bytes=device.memory_bytes,
        free_memory_bytes=device.free_memory_bytes,
        max_rank=policy.max_rank,
        cpu_flags=cpu_flags(),
        versions=package_versions(),
    )


def installed_algorithms() -> Mapping[str, int]:
    """Name -> revision of every installed algorithm."""
    return {name: algorithm.revision for name, algorithm in registry.algorithms().items()}


def allowed_algorithms(settings: AgentSettings) -> dict[str, int]:
    """Name -> revision of the installed algorithms that the policy allows."""
    return {name: number for name, number in installed_algorithms().items() if is_allowed(name, settings)}


def is_allowed(algorithm: str, settings: AgentSettings) -> bool:
    """Whether the policy allows an algorithm. Those of other distributions must be named in it."""
    allowlist = settings.policy.algorithms
    return registry.distribution_of(algorithm) is None if allowlist is None else algorithm in allowlist


def find_device(settings: AgentSettings) -> Device:
    """The device of `settings.device` on this host, found by torch in a child process unless it is the CPU.

    Raises ConfigurationError.
    """
    if settings.device == "cpu":
        memory = psutil.virtual_memory()
        return Device(
            device="cpu", device_name=cpu_name(), memory_bytes=memory.total, free_memory_bytes=memory.available
        )
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, settings.model_dump_json())
    process = context.Process(target=_describe, args=arguments, name="describe-device", daemon=True)
    process.start()
    sender.close()
    try:
        message = json.loads(receiver.recv_bytes())
    except EOFError:
        process.join()
        message = {"problem": f"the process that inspects it ended with exit code {process.exitcode}"}
    finally:
        process.join()
        receiver.close()
    if "problem" in message:
        raise ConfigurationError(f"device {settings.device!r}: {message['problem']}; run: worker-agent doctor")
    return Device.model_validate(message)


def _describe(pipe: "Connection[Any, Any]", settings_json: str) -> None:
    settings = AgentSettings(**json.loads(settings_json))
    try:
        facts = importlib.import_module(DEVICE_MODULE).describe_device(settings)
        message = {
            "device": facts.kind,
            "device_name": facts.name,
            "memory_bytes": facts.memory_bytes,
            "free_memory_bytes": facts.free_memory_bytes,
        }
    except Exception as error:
        message = {"problem": str(error)}
    pipe.send_bytes(json.dumps(message).encode())


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide the bits of a result."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def cpu_flags() -> tuple[str, ...]:
    """The vector features of this CPU, sorted; empty if the system does not report them."""
    flags = _cpu_fact("flags", "Features").split()
    return tuple(sorted(VECTOR_FLAGS.intersection(flags)))


def cpu_name() -> str | None:
    """The CPU's name as the system reports it."""
    return _cpu_fact("model name") or platform.processor() or None


def _cpu_fact(*names: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    facts = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in facts if name.strip() in names), "")
