"""Selection of the trained tensors that FedKSeed perturbs."""

from collections.abc import Iterable

from federated.algorithms.fedkseed.config import FedKSeedConfig
from federated.patterns import compile_patterns

_FACTORS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}


def perturbed_names(names: Iterable[str], config: FedKSeedConfig) -> list[str]:
    """The canonical names that the config perturbs, sorted. All other tensors keep their start."""
    return sorted(name for name in names if _is_perturbed(name, config.perturb))


def _is_perturbed(name: str, perturb: str | tuple[str, ...]) -> bool:
    if perturb == "all":
        return True
    if isinstance(perturb, str):
        return not _FACTORS.isdisjoint(name.split("."))
    return compile_patterns(perturb).first_over(name) is not None
