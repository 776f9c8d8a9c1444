"""LoRA factors at another rank and scale than the model was built with, for one job."""

from collections.abc import Iterator

import pytest
import torch

from federated.contract import AnyTrainable
from federated.trainable import Full, Lora
from tests.support.training import COLORS, REPEAT, logits_of, make_node, train_some_steps, work_of
from worker_agent.settings import AgentSettings
from worker_agent.training.session import Session, SessionFactory

LORA = Lora(r=4, lora_alpha=8, rank_pattern={"layer.0.attention.self.query": 3})
QUERY = "bert.encoder.layer.0.attention.self.query"
VALUE = "bert.encoder.layer.1.attention.self.value"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentSettings]:
    threads = torch.get_num_threads()
    yield make_node(tmp_path_factory.mktemp("node"))
    torch.set_num_threads(threads)


@pytest.fixture
def bench(node: AgentSettings) -> SessionFactory:
    return SessionFactory(node)


def opened(bench: SessionFactory, trainable: AnyTrainable = LORA, model: str = "bert") -> Session:
    task, data = (REPEAT, "instructions") if model == "llama" else (COLORS, "colors")
    return bench.open(work_of(model, trainable, task), data, 3, {})


def modules_of(session: Session) -> list[str]:
    return sorted({name.partition(".lora_")[0] for name in session.trainables if ".lora_" in name})


def resized(session: Session, rank: int, scale: float) -> Session:
    """Every module at one rank and scale, with small random values."""
    modules = modules_of(session)
    session.resize(dict.fromkeys(modules, rank), dict.fromkeys(modules, scale))
    generator = torch.Generator().manual_seed(0)
    values = {
        name: torch.randn(value.shape, generator=generator) * 0.2
        for name, value in session.trainables.items()
        if ".lora_" in name
    }
    session.load(values)
    return session


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_a_resized_model_is_its_base_with_the_scaled_product_added(bench: SessionFactory, model: str) -> None:
    session = resized(opened(bench, Lora(r=4), model=model), 2, 0.7)
    _, with_factors = logits_of(session)
    products = {
        module: 0.7 * session.trainables[f"{module}.lora_B.weight"] @ session.trainables[f"{module}.lora_A.weight"]
        for module in modules_of(session)
    }
    weights = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): value
        for name, value in session.model.named_parameters()
        if name.endswith("base_layer.weight")
    }
    for module, product in products.items():
        weights[f"{module}.weight"].data += product.detach()
    session.load({name: torch.zeros_like(value) for name, value in session.trainables.items() if ".lora_" in name})
    torch.testing.assert_close(logits_of(session)[1], with_factors, rtol=1e-4, atol=1e-5)
    bench.clear()


def test_a_resized_model_trains_at_its_new_rank(bench: SessionFactory) -> None:
    session = resized(opened(bench), 7, 0.5)
    before = session.read()
    train_some_steps(session)
    after = session.read()
    assert after[f"{QUERY}.lora_A.weight"].shape == (7, 16)
    assert after[f"{QUERY}.lora_B.weight"].shape == (16, 7)
    assert all((after[name] != before[name]).any() for name in before if ".lora_" in name)


def test_the_next_session_of_the_same_model_is_at_the_trainables_rank_scale_and_start(bench: SessionFactory) -> None:
    fresh = opened(bench)
    starts, (_, logits), model = fresh.read(), logits_of(fresh), fresh.model
    train_some_steps(resized(fresh, 1, 9.0))
    again = opened(bench)
    assert again.model is model
    assert all(torch.equal(value, starts[name]) for name, value in again.read().items())
    assert torch.equal(logits_of(again)[1], logits)
    # B starts at zero, so the scale shows only once it is not.
    modules = modules_of(again)
    again.load(
        {f"{module}.lora_B.weight": torch.ones(16, len(starts[f"{module}.lora_A.weight"])) for module in modules}
    )
    separate = opened(SessionFactory(bench.settings))
    separate.load({f"{module}.lora_B.weight": again.read()[f"{module}.lora_B.weight"] for module in modules})
    assert torch.equal(logits_of(again)[1], logits_of(separate)[1])
    told = []
    for session in (again, separate):
        # The base model's own dropout draws from the global generator.
        torch.manual_seed(0)
        told.append(train_some_steps(session))
    assert told[0] == told[1]


def test_one_module_alone_can_be_resized(bench: SessionFactory) -> None:
    session = opened(bench)
    session.resize({VALUE: 2}, {VALUE: 1.5})
    assert session.trainables[f"{VALUE}.lora_A.weight"].shape == (2, 16)
    assert session.trainables[f"{QUERY}.lora_A.weight"].shape == (3, 16)


def test_a_resized_embedding_is_its_base_with_the_scaled_product_added(bench: SessionFactory) -> None:
    name = "bert.embeddings.word_embeddings"
    session = resized(opened(bench, Lora(r=2, target_modules=("word_embeddings",))), 3, 0.5)
    a, b = (session.trainables[f"{name}.lora_embedding_{factor}"] for factor in "AB")
    assert a.shape[0] == b.shape[1] == 3
    _, with_factors = logits_of(session)
    table = session.model.get_submodule(f"base_model.model.{name}.base_layer")
    table.weight.data += 0.5 * (b @ a).T.detach()
    session.load(
        {f"{name}.lora_embedding_{factor}": torch.zeros_like(value) for factor, value in (("A", a), ("B", b))}
    )
    torch.testing.assert_close(logits_of(session)[1], with_factors, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_resized_is_named(bench: SessionFactory, node: AgentSettings) -> None:
    session = opened(bench)
    with pytest.raises(KeyError, match=r"'bert\.pooler' has no LoRA factors"):
        session.resize({"bert.pooler": 2}, {"bert.pooler": 1.0})
    with pytest.raises(ValueError, match=f"{QUERY}': rank 0 is below 1"):
        session.resize({QUERY: 0}, {QUERY: 1.0})
    full = opened(bench, Full(names=("*.layer.0.*",)))
    with pytest.raises(KeyError, match="has no LoRA factors"):
        full.resize({QUERY: 2}, {QUERY: 1.0})
