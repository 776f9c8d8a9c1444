"""Losses that are differentiable twice, with any attention implementation."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertModel

from federated.contract import JobDeclined
from federated.trainable import Lora
from tests.support.tiny_models import bert_folder
from tests.support.training import REPEAT, make_node, work_of
from worker_agent.settings import AgentSettings
from worker_agent.training.attention import differentiable_twice
from worker_agent.training.session import Session, open_session


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentSettings]:
    threads = torch.get_num_threads()
    yield make_node(tmp_path_factory.mktemp("node"))
    torch.set_num_threads(threads)


def second_derivative(session: Session) -> Tensor:
    parameters = list(session.trainables.values())
    batch = next(session.batches(range(4), 4))
    gradients = torch.autograd.grad(session.loss(batch), parameters, create_graph=True)
    squares = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
    return torch.cat([one.flatten() for one in torch.autograd.grad(squares, parameters)])


def test_a_decoder_with_fused_attention_has_a_second_derivative_while_it_is_asked_for(node: AgentSettings) -> None:
    session = open_session(work_of("llama", Lora(r=2), REPEAT), "instructions", node, 3, {})
    with session.differentiable_twice():
        made = second_derivative(session)
    assert made.isfinite().all()
    assert made.any()


def test_a_batch_tells_which_tokens_are_real(node: AgentSettings) -> None:
    session = open_session(work_of("bert"), "colors", node, 3, {})
    batch = next(session.batches(range(3), 3))
    assert torch.equal(batch.mask, batch.inputs["attention_mask"] == 1)


def test_a_model_whose_attention_has_no_plain_form_is_declined_by_name(tmp_path: Path) -> None:
    class Fused(BertModel):
        def set_attn_implementation(self, attn_implementation: object, allow_all_kernels: bool = False) -> None:
            raise ValueError(f"no {attn_implementation}")

    model = Fused.from_pretrained(bert_folder(tmp_path))
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(JobDeclined, match=r"second_derivative_missing: .*'flash_attention_2'.*no eager"):
        with differentiable_twice(model):
            raise AssertionError("the block ran")
