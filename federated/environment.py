"""Description of the environment that determines the bits of an aggregation, besides its inputs."""

import platform
from typing import Any

import torch

from federated import __version__


def environment() -> dict[str, Any]:
    """Versions, processor and thread count that an aggregation in this process uses."""
    return {
        "fedloom": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "aggregation_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
    }
