"""A model as a session evaluated it, and as it is written: an adapter that is opened again, or merged and opened."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from federated.contract import Adapter, AnyTrainable
from federated.export.adapter_files import write_adapter
from federated.protocol import Cloze, TaskDefinition, Work
from federated.trainable import Lora
from tests.support import tiny_models, zoo
from tests.support.training import COLORS, REPEAT, work_of
from worker_agent.settings import AgentSettings, DatasetSettings
from worker_agent.training.session import Session, SessionFactory

TASKS = {
    "classifier": COLORS,
    "causal_lm": REPEAT,
    "cloze": TaskDefinition(
        task="sequence_classification",
        labels=("red", "green", "blue"),
        cloze=Cloze(template="{text} is {mask}", words=("red", "green", "blue")),
    ),
}
_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "FEATURE_EXTRACTION": "AutoModelForMaskedLM",
}
_TEXTS = [("the cat is red", "red"), ("a", "green"), ("blue dog one two three say", "blue"), ("the dog", "green")]
EXAMPLES = 4


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A session with values that it might have been trained to, and what it made of a batch of unequal examples."""

    session: Session
    base: Path
    work: Work
    inputs: dict[str, Tensor]
    logits: Tensor
    before: Tensor

    @property
    def automatic(self) -> Any:
        """The class with which anybody opens such a model."""
        return getattr(transformers, _CLASSES[self.session.facts.task_type])

    def write(self, folder: Path) -> Path:
        """The adapter."""
        assert isinstance(self.work.trainable, Lora)
        adapter = Adapter("peft", self.session.values())
        write_adapter(folder, adapter, self.work.trainable, self.session.facts, str(self.base), {})
        return folder

    def loaded_base(self) -> Any:
        """The base model as a user of the adapter loads it."""
        labels: dict[str, Any] = {"num_labels": 3} if self.session.facts.task_type == "SEQ_CLS" else {}
        options: dict[str, Any] = {"dtype": torch.float32, "ignore_mismatched_sizes": True, **labels}
        model = self.automatic.from_pretrained(self.base, **options)
        # Without it a decoder's classifier takes no batch; the merged folder has its own.
        model.config.get_text_config().pad_token_id = self.session.model.config.pad_token_id
        return model

    def opened(self, folder: Path) -> Any:
        """A merged folder as anybody opens it; every tensor has its place."""
        model, loading = self.automatic.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        return model.eval()

    def logits_of(self, model: Any) -> Tensor:
        """Of the same batch."""
        with torch.no_grad():
            found: Tensor = model.eval()(**self.inputs).logits
        return found


def node_of(name: str, root: Path) -> AgentSettings:
    """A node with one kind of the zoo, and rows for each task."""
    colors = tiny_models.write_rows(root / "colors.jsonl", [{"text": t, "label": c} for t, c in _TEXTS * 10])
    instructions = tiny_models.write_rows(root / "instructions.jsonl", tiny_models.instruction_rows(20))
    return AgentSettings(
        models={name: str(zoo.folder(name, root))},
        datasets={"colors": DatasetSettings(path=colors), "instructions": DatasetSettings(path=instructions)},
        device="cpu",
    )


def opened_session(name: str, root: Path, task: TaskDefinition, trainable: AnyTrainable) -> tuple[Work, Session]:
    """A session of a kind of the zoo. Raises ModelError."""
    work = work_of(name, trainable, task)
    data = "colors" if task.labels else "instructions"
    return work, SessionFactory(node_of(name, root)).open(work, data, 0, {})


def evaluated(name: str, root: Path, task: str, trainable: AnyTrainable) -> Evaluated:
    """A session with random values in every tensor that it trains. Raises ModelError."""
    work, session = opened_session(name, root, TASKS[task], trainable)
    batch = next(session.batches(range(EXAMPLES), EXAMPLES))
    inputs = dict(batch.inputs)
    session.training(False)
    with torch.no_grad():
        before = session.model(**inputs).logits
        session.load(_random_values(session))
        logits = session.model(**inputs).logits
    return Evaluated(session, zoo.folder(name, root), work, inputs, logits, before)


def config_of(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder."""
    document: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return document


def _random_values(session: Session) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(value.shape, generator=generator) * (0.3 if ".lora_" in name else 0.1)
        for name, value in session.trainables.items()
    }
