"""Training device and number format."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch

from worker_agent.settings import AgentSettings
from worker_agent.training.job_errors import ModelError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """Facts for `doctor` and the coordinator. Memory is that of one device, or of the host without one."""

    kind: str
    name: str
    count: int
    memory_bytes: int
    free_memory_bytes: int


def choose_device(setting: str) -> torch.device:
    """The device `setting`, or for `auto` CUDA, else MPS, else CPU. Raises ModelError (device_missing)."""
    if setting == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(setting)
    except RuntimeError:
        raise ModelError("device_missing", f"device {setting!r} in the settings is not a device") from None
    if not _is_there(device):
        raise ModelError("device_missing", f"device {setting!r} in the settings is not on this machine")
    return device


def _is_there(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type == "cpu"


def choose_dtype(setting: str, device: torch.device) -> torch.dtype:
    """Format of matrix products: `setting`, or for `auto` bfloat16 on a GPU with native support, else float32."""
    if setting != "auto":
        return _DTYPES[setting]
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


@contextlib.contextmanager
def precision(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Autocast to `dtype`, or nothing for float32. Trained parameters stay float32 in both cases."""
    if dtype is torch.float32:
        yield
        return
    with torch.autocast(device.type, dtype=dtype):
        yield


def spread_over(device: torch.device, weights_bytes: int) -> str | None:
    """A `device_map` if there are several GPUs and one cannot hold the weights twice, else None."""
    if device.type != "cuda" or device.index is not None or torch.cuda.device_count() < 2:
        return None
    _, total_bytes = torch.cuda.mem_get_info()
    return "balanced" if 2 * weights_bytes > total_bytes else None


def describe_device(settings: AgentSettings) -> DeviceFacts:
    """The device this node trains on. Raises ModelError (device_missing)."""
    device = choose_device(settings.device)
    if device.type == "cuda":
        name, count = torch.cuda.get_device_name(device), torch.cuda.device_count()
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        return DeviceFacts("cuda", name, count, total_bytes, free_bytes)
    name = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else "Apple GPU"
    memory = psutil.virtual_memory()
    return DeviceFacts(device.type, name, 1, memory.total, memory.available)


def repeatable(threads: int) -> None:
    """Make results of this process repeatable bit for bit: fixed threads, and deterministic kernels if they exist."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    # Filling every new tensor costs time and only helps to find reads of uninitialized memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
