"""Baselines of the federation: no training, each organization alone, all data pooled, and a bag of words.

Alone and pooled are simulated federations of one client. Alone takes the organization's own steps in the federation,
pooled the sum of all steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from examples.quickstart.base_model import MODEL_ID
from examples.quickstart.definition import HELD_OUT, MAX_LENGTH, work_of
from examples.quickstart.tasks import Row
from federated import registry
from federated.contract import AlgorithmConfig
from federated.export.adapter_files import write_adapter
from federated.merge import merge
from federated.session import TrainingSession
from federated.simulation import SimulatedFederation, run
from worker_agent.settings import AgentSettings, DatasetSettings
from worker_agent.training.session import SessionFactory

BATCH_SIZE = 64


@dataclass(frozen=True)
class Site:
    """Inputs of the baselines: the federation's definition, training rows by name, the base model, the test rows."""

    body: Mapping[str, Any]
    files: Mapping[str, Path]
    base: Path
    test: Sequence[Row]
    folder: Path

    def settings(self) -> AgentSettings:
        """Settings of one worker with all data sets, each split as at its organization."""
        datasets = {name: DatasetSettings(path=path, held_out=HELD_OUT) for name, path in self.files.items()}
        return AgentSettings(datasets=datasets, models={MODEL_ID: str(self.base)}, device="cpu")


def train_alone(site: Site, dataset: str, times_steps: int) -> float:
    """Accuracy of a federation of one client, with its local steps multiplied by `times_steps`."""
    return accuracy(site, simulate(site, [dataset], site.folder / dataset, times_steps))


def simulate(site: Site, datasets: Sequence[str], folder: Path, times_steps: int = 1) -> Path:
    """Simulate the federation with one client per data set and local steps multiplied by `times_steps`.

    Returns the folder of its adapter.
    """
    work, workbench = work_of(site.body), SessionFactory(site.settings())
    config = _with_more_steps(registry.make_config(work.algorithm, work.config), times_steps)

    def session(ordinal: int, seed: int) -> TrainingSession:
        return workbench.open(work, datasets[ordinal], seed, {})

    federation = SimulatedFederation(
        algorithm=work.algorithm,
        config=config,
        trainable=work.trainable,
        clients=len(datasets),
        rounds=work.rounds,
        seed=work.federation_seed,
    )
    result = run(federation, session)
    facts = session(0, 0).facts
    write_adapter(folder, result.adapter, work.trainable, facts, work.base_model.id, {"data": ", ".join(datasets)})
    return folder


def initial_accuracy(site: Site, dataset: str) -> float:
    """Accuracy of the initial adapter of every federation: the seeded head over the unchanged base model."""
    work = work_of(site.body)
    server = registry.server_half(work.algorithm, registry.make_config(work.algorithm, work.config), work.trainable)
    facts = SessionFactory(site.settings()).open(work, dataset, 0, {}).facts
    first = server.export(server.start(facts, work.federation_seed, None))
    folder = site.folder / "untrained"
    write_adapter(folder, first, work.trainable, facts, work.base_model.id, {"data": "none"})
    return accuracy(site, folder)


def _with_more_steps(config: AlgorithmConfig, times_steps: int) -> AlgorithmConfig:
    """The config with `times_steps` as many local steps or epochs per round."""
    fields = config.model_dump()
    length = "local_steps" if fields.get("local_steps") is not None else "local_epochs"
    return type(config).model_validate({**fields, length: fields[length] * times_steps})


def accuracy(site: Site, adapter: Path) -> float:
    """Accuracy on the test rows of the base model with a downloaded adapter, loaded as by any user."""
    labels, test = site.body["task"]["labels"], site.test
    model = load_model(adapter, site.base, len(labels))
    tokenizer = AutoTokenizer.from_pretrained(site.base)
    right = 0
    for start in range(0, len(test), BATCH_SIZE):
        rows = test[start : start + BATCH_SIZE]
        texts = [row["text"] for row in rows]
        pairs = [row["text_pair"] for row in rows] if "text_pair" in rows[0] else None
        batch = tokenizer(texts, pairs, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
        with torch.inference_mode():
            guesses = model(**batch).logits.argmax(-1).tolist()
        right += sum(labels[guess] == row["label"] for guess, row in zip(guesses, rows, strict=True))
    return right / len(test)


def load_model(adapter: Path, base: Path, labels: int) -> Any:
    """The base model with an adapter. PEFT loads its own adapters; others are merged into the weights first."""
    if (adapter / "adapter_config.json").exists():
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
        return PeftModel.from_pretrained(model, str(adapter)).eval()
    with TemporaryDirectory() as folder:
        merge(adapter, base, Path(folder))
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels).eval()


def bag_of_words(train: Sequence[Row], test: Sequence[Row]) -> float:
    """Accuracy of a logistic regression on the pooled words."""
    model = make_pipeline(CountVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=2000))
    model.fit([_text(row) for row in train], [row["label"] for row in train])
    return float(model.score([_text(row) for row in test], [row["label"] for row in test]))


def _text(row: Mapping[str, Any]) -> str:
    return f"{row['text']} {row.get('text_pair', '')}"
