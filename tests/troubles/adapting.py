"""Models of the zoo on a node, adapted there, and opened again as anybody opens them."""

from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor

from federated.contract import Adapter, AnyTrainable
from federated.export.adapter_files import write_adapter
from tests.support import tiny_models, zoo
from tests.support.training import COLORS, FEW_EXAMPLES, REPEAT, logits_of, work_of
from worker_agent.settings import AgentSettings, DatasetSettings
from worker_agent.training.job_errors import JobRefused
from worker_agent.training.session import Session, SessionFactory
from worker_agent.training.trial import try_model

TASKS = {"classifier": COLORS, "causal_lm": REPEAT}
LONG = " ".join(["the bird one is a cat two"] * 30)


class Zoo:
    """A node that has every model of the zoo, and rows of which one is longer than any of them reads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        rows = tiny_models.color_rows(40)
        rows[3]["text"] += " " + LONG
        colors = tiny_models.write_rows(root / "colors.jsonl", rows)
        instructions = tiny_models.write_rows(root / "instructions.jsonl", tiny_models.instruction_rows(30))
        self.node = AgentSettings(
            datasets={"colors": DatasetSettings(path=colors), "instructions": DatasetSettings(path=instructions)},
            device="cpu",
            policy=FEW_EXAMPLES,
        )

    def opened(self, model: str, trainable: AnyTrainable, task: str = "classifier", **settings: Any) -> Session:
        """A session over a model of the zoo. Raises ModelError."""
        folder = str(zoo.folder(model, self.root))
        node = self.node.model_copy(update={"models": {model: folder}, **settings})
        data = "instructions" if task == "causal_lm" else "colors"
        return SessionFactory(node).open(work_of(model, trainable, TASKS[task]), data, 3, {})

    def refusal(self, model: str, trainable: AnyTrainable, task: str = "classifier") -> JobRefused | None:
        """The refusal of a trial before any round; None if the model passes."""
        try:
            try_model(self.opened(model, trainable, task), trainable, gradients=True)
        except JobRefused as error:
            return error
        return None

    def assert_reopens(self, session: Session, model: str, trainable: AnyTrainable, folder: Path) -> None:
        """Hold what PEFT opens against the session: the logits of five examples, to the bit."""
        write_adapter(folder, Adapter("peft", session.values()), trainable, session.facts, "base", {})
        inputs, expected = logits_of(session)
        found = peft.PeftModel.from_pretrained(self._base(session, model), str(folder)).eval()
        with torch.no_grad():
            logits: Tensor = found(**inputs).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=0)

    def _base(self, session: Session, model: str) -> Any:
        """The base model as a user of the adapter loads it."""
        folder, options = zoo.folder(model, self.root), {"dtype": torch.float32}
        if session.facts.task_type == "CAUSAL_LM":
            return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
        labels: dict[str, Any] = {"num_labels": 3, "ignore_mismatched_sizes": True}
        base = transformers.AutoModelForSequenceClassification.from_pretrained(folder, **options, **labels)
        config: Any = session.model.config
        base.config.get_text_config().pad_token_id = config.pad_token_id
        return base
