"""Layers without their prompts, in models of transformers."""

import pytest
import torch
from torch import Tensor

from federated.trainable import Prefix
from tests.support.training import COLORS, REPEAT, make_node, work_of
from worker_agent.settings import AgentSettings
from worker_agent.training.session import Session, SessionFactory

VIRTUAL_TOKENS = 3
PREFIX = Prefix(num_virtual_tokens=VIRTUAL_TOKENS, init_std=1.0)
MODELS = pytest.mark.parametrize("model", ["bert", "roberta", "llama"])


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> AgentSettings:
    return make_node(tmp_path_factory.mktemp("node"))


def opened(bench: SessionFactory, model: str) -> Session:
    work = work_of(model, PREFIX, REPEAT if model == "llama" else COLORS)
    return bench.open(work, "instructions" if model == "llama" else "colors", 3, {})


def logits(session: Session) -> Tensor:
    batch = next(session.batches([0, 1, 2, 3, 4], 5))
    with torch.no_grad():
        found: Tensor = session.model(**batch.inputs).logits
    return found * batch.mask.unsqueeze(-1) if session.facts.task_type == "CAUSAL_LM" else found


@MODELS
def test_without_any_prompt_only_the_positions_are_shifted(node: AgentSettings, model: str) -> None:
    session = opened(SessionFactory(node), model)
    with_prompts = logits(session)
    session.leave_out_prompts(range(session.facts.layers))
    found = logits(session)
    batch = next(session.batches([0, 1, 2, 3, 4], 5))
    first = VIRTUAL_TOKENS + (1 if model == "roberta" else 0)
    positions = torch.arange(batch.inputs["input_ids"].shape[1]).expand_as(batch.inputs["input_ids"]) + first
    base = getattr(session.model, "base_model")  # noqa: B009
    with torch.no_grad():
        expected = base(**batch.inputs, position_ids=positions).logits
    expected = expected * batch.mask.unsqueeze(-1) if model == "llama" else expected
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, with_prompts, atol=1e-3)


@MODELS
def test_each_layer_is_left_out_by_itself_until_the_next_session(node: AgentSettings, model: str) -> None:
    bench = SessionFactory(node)
    session = opened(bench, model)
    plain = logits(session)
    told = []
    for layers in ([0], [1], [0, 1]):
        session = opened(bench, model)
        assert torch.equal(logits(session), plain)
        session.leave_out_prompts(layers)
        told.append(logits(session))
    assert all(
        not torch.allclose(one, other, atol=1e-4) for one in told for other in (*told, plain) if one is not other
    )


def test_what_is_left_out_gets_no_gradient(node: AgentSettings) -> None:
    session = opened(SessionFactory(node), "bert")
    session.leave_out_prompts([1])
    session.loss(next(session.batches([0, 1], 2))).backward()  # type: ignore[no-untyped-call]
    gradient = session.trainables["prompt_embeddings"].grad
    assert gradient is not None
    lower, upper = gradient.chunk(2, dim=1)
    assert lower.any()
    assert not upper.any()
