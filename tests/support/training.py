"""Fixtures of training tests: tiny models and data sets on one node, and a federation's work over them."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from federated import registry
from federated.contract import AnyTrainable, ClientFacts, RoundFacts
from federated.payloads.payload import Payload
from federated.protocol import BaseModelReference, TaskDefinition, Work
from federated.simulation import Result
from federated.trainable import Lora, ModelFacts
from tests.support import tiny_models
from worker_agent.settings import AgentSettings, DatasetSettings, PolicySettings
from worker_agent.training.session import Session, SessionFactory

COLORS = TaskDefinition(
    task="sequence_classification", labels=("red", "green", "blue"), metrics=("accuracy", "matthews", "f1")
)
REPEAT = TaskDefinition(task="causal_lm")
FEDERATION_SEED = 7
FEW_EXAMPLES = PolicySettings(min_examples=8, min_held_out=3)
"""The limits of a node whose owner lets out what a handful of examples made."""


def make_node(folder: Path, **settings: Any) -> AgentSettings:
    """A node that allows five tiny models and has data for both tasks: `colors` and `instructions`."""
    # Tiny tensors gain nothing from a second thread.
    torch.set_num_threads(1)
    models = {
        "bert": tiny_models.bert_folder(folder / "bert"),
        "bert-without-pooler": tiny_models.bert_folder(folder / "bert-without-pooler", pooler=False),
        "roberta": tiny_models.roberta_folder(folder / "roberta"),
        "llama": tiny_models.llama_folder(folder / "llama"),
        "tied-llama": tiny_models.llama_folder(folder / "tied-llama", tied=True),
    }
    colors = tiny_models.write_rows(folder / "colors.jsonl", tiny_models.color_rows(40))
    instructions = tiny_models.write_rows(folder / "instructions.jsonl", tiny_models.instruction_rows(30))
    return AgentSettings(
        models={name: str(path) for name, path in models.items()},
        datasets={"colors": DatasetSettings(path=colors), "instructions": DatasetSettings(path=instructions)},
        device="cpu",
        **{"policy": FEW_EXAMPLES, **settings},
    )


def work_of(
    model: str,
    trainable: AnyTrainable | None = None,
    task: TaskDefinition = COLORS,
    config: dict[str, Any] | None = None,
    weights_sha256: str | None = None,
) -> Work:
    """A federation's work on one of the node's models."""
    return Work(
        task=task,
        base_model=BaseModelReference(id=model, weights_sha256=weights_sha256),
        trainable=trainable or Lora(r=2),
        algorithm="fedavg",
        algorithm_revision=1,
        config=config or {},
        federation_seed=FEDERATION_SEED,
        rounds=2,
    )


def train_some_steps(session: Session, steps: int = 4, examples: int = 8) -> list[float]:
    """Plain AdamW on the trainables that require a gradient; returns the losses."""
    optimizer = torch.optim.AdamW(
        [value for value in session.trainables.values() if value.requires_grad], lr=2e-2, weight_decay=0.0
    )
    session.training(True)
    told = []
    order = [index % session.examples for index in range(steps * examples)]
    for batch in session.batches(order, examples):
        loss = session.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        told.append(loss.item())
    session.training(False)
    return told


def data_of(task: TaskDefinition) -> str:
    """The node's data set for a task."""
    return "colors" if task.labels else "instructions"


def logits(model: Any) -> Tensor:
    """What a model makes of four tokens."""
    tokens = torch.tensor([[4, 5, 6, 7]])
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    return found


def evaluated_logits(algorithm: str, work: Work, bench: SessionFactory, result: Result) -> Tensor:
    """Those of a session that applied the state a simulation ended with."""
    config = registry.make_config(algorithm, work.config)
    opened = bench.open(work, data_of(work.task), 0, {})
    client = ClientFacts(1, "one", opened.examples, {}, {}, None, 0)
    step = RoundFacts(work.rounds, "evaluate", work.rounds, 2)
    told = registry.server_half(algorithm, config, work.trainable).plan(result.state, [client], step)[1]
    registry.client_half(algorithm, config, work.trainable).apply(told, opened, None, "shared")
    return logits(opened.model)


def logits_of(session: Session, examples: int = 5) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of the first examples, and what the session's model makes of them."""
    batch = next(session.batches(range(examples), examples))
    with torch.no_grad():
        return dict(batch.inputs), session.model(**batch.inputs).logits


def first_instruction(
    work: Work, facts: ModelFacts, step: Literal["prepare", "train", "evaluate"] = "train"
) -> Payload:
    """What the coordinator sends client 1 in round 1."""
    config = registry.make_config(work.algorithm, work.config)
    server = registry.server_half(work.algorithm, config, work.trainable)
    client = ClientFacts(1, "client 1", 10, {}, {}, None, 0)
    state = server.start(facts, work.federation_seed, None)
    return server.plan(state, [client], RoundFacts(1, step, work.rounds, 1))[1]
