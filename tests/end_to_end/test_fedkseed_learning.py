"""FedKSeed on a real task: MiniLM learns to distinguish two intents of support messages."""

from pathlib import Path

import pytest

from examples.quickstart import messages
from examples.quickstart.base_model import MODEL_ID, minilm
from examples.quickstart.tasks import write_rows
from federated import simulation
from federated.protocol import BaseModelReference, TaskDefinition, Work
from federated.registry import make_config
from federated.simulation import SimulatedFederation
from federated.trainable import Full
from worker_agent.settings import AgentSettings, DatasetSettings
from worker_agent.training.session import SessionFactory

INTENTS = ("billing", "login")
STEPS = 150
ROUNDS = 2


@pytest.mark.slow
def test_three_hundred_steps_take_three_tenths_off_the_loss_and_find_three_messages_of_four(tmp_path: Path) -> None:
    corpus = messages.generate(0)
    train = [row for rows in corpus.train.values() for row in rows if row["label"] in INTENTS]
    held_out = [row for row in corpus.test if row["label"] in INTENTS]
    write_rows(tmp_path / "train.jsonl", train)
    write_rows(tmp_path / "test.jsonl", held_out)
    dataset = DatasetSettings(path=tmp_path / "train.jsonl", test_path=tmp_path / "test.jsonl")
    bench = SessionFactory(
        AgentSettings(datasets={"messages": dataset}, models={MODEL_ID: str(minilm())}, device="cpu")
    )
    trainable = Full(names=("*.pooler.*", "classifier.*"))
    settings = {"local_steps": STEPS, "batch_size": 4, "learning_rate": 3e-3}
    work = Work(
        task=TaskDefinition(task="sequence_classification", labels=INTENTS, max_length=64),
        base_model=BaseModelReference(id=MODEL_ID),
        trainable=trainable,
        algorithm="fedkseed",
        algorithm_revision=1,
        config=settings,
        federation_seed=1,
        rounds=ROUNDS,
    )
    before = bench.open(work, "messages", 0, {}).evaluate()
    federation = SimulatedFederation(
        "fedkseed", make_config("fedkseed", settings), trainable, 1, ROUNDS, seed=1, evaluate_every=ROUNDS
    )
    result = simulation.run(federation, lambda ordinal, seed: bench.open(work, "messages", seed, {}))
    after = result.rounds[-1].metrics
    assert after["loss"] < before["loss"] * 0.7
    assert after["accuracy"] > 0.75
    assert after["accuracy"] > before["accuracy"] + 0.2
