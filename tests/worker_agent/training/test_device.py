"""Choice of the training device and number format."""

import pytest
import torch

from worker_agent.settings import AgentSettings
from worker_agent.training.device import choose_device, choose_dtype, describe_device, precision, spread_over
from worker_agent.training.job_errors import ModelError

CPU = torch.device("cpu")


@pytest.mark.parametrize(("setting", "told"), [("toaster", "is not a device"), ("cuda:99", "is not on this machine")])
def test_a_device_that_is_not_there_is_refused_by_its_name(setting: str, told: str) -> None:
    with pytest.raises(ModelError, match=f"'{setting}' in the settings {told}") as caught:
        choose_device(setting)
    assert caught.value.code == "device_missing"


def test_a_named_device_is_taken_before_the_automatic_choice() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in {"cpu", "cuda", "mps"}


def test_products_are_float32_on_a_cpu_unless_a_format_is_named() -> None:
    assert choose_dtype("auto", CPU) is torch.float32
    assert choose_dtype("bfloat16", CPU) is torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_made_in_the_chosen_format(dtype: torch.dtype) -> None:
    with precision(CPU, dtype):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is dtype


def test_the_cpu_is_described_with_the_hosts_memory() -> None:
    facts = describe_device(AgentSettings(device="cpu"))
    assert (facts.kind, facts.count) == ("cpu", 1)
    assert facts.memory_bytes > facts.free_memory_bytes > 2**20
    assert facts.name


@pytest.mark.gpu
def test_memory_that_is_taken_on_a_gpu_is_not_free() -> None:
    settings = AgentSettings(device="cuda")
    before = describe_device(settings)
    taken = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    after = describe_device(settings)
    assert before.memory_bytes == after.memory_bytes > before.free_memory_bytes
    assert before.free_memory_bytes - after.free_memory_bytes >= taken.numel()


def test_a_model_is_not_spread_without_several_gpus() -> None:
    assert spread_over(CPU, 2**60) is None
