"""Overhead of the session and the shared loop over a bare PEFT loop: `python -m benchmarks.training_overhead`.

Both train LoRA on MiniLM with the same batches, seeds and AdamW, in turn in one run. The batches of the bare loop are
prepared beforehand. The figure is the median over the turns of ours / bare. Both must end with the same bits.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from benchmarks.report import print_report
from benchmarks.rows import minilm_folder, open_rows
from federated.algorithm_kit.local_training import Hooks, train
from federated.contract import GradientConfig
from federated.trainable import Lora, peft_name
from worker_agent.training.session import Session

_TARGET_RATIO = 1.05
_LABELS = ("question", "complaint", "praise", "other")
_WORDS = (
    "account",
    "card",
    "transfer",
    "refund",
    "invoice",
    "late",
    "thanks",
    "please",
    "why",
    "when",
    "phone",
    "bill",
)
_LORA = Lora(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=("query", "value"))


@dataclass(frozen=True)
class TurnSeconds:
    """Seconds of each turn of both loops."""

    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)

    def ratio(self) -> float:
        return statistics.median(ours / bare for ours, bare in zip(self.ours, self.bare, strict=True))


def open_ours(folder: Path, model: Path, examples: int, device: str) -> Session:
    """A session over random short texts."""
    draw = random.Random(0)
    rows = [(" ".join(draw.choices(_WORDS, k=draw.randint(5, 40))), draw.choice(_LABELS)) for _ in range(examples)]
    return open_rows(rows, _LABELS, _LORA, folder, model=model, device=device)


def make_bare(model: Path, session: Session) -> peft.PeftModel:
    """PEFT's model, built as in its documentation, with the values of the session."""
    base = AutoModelForSequenceClassification.from_pretrained(str(model), num_labels=len(_LABELS))
    fields = _LORA.model_dump(exclude={"kind", "modules_to_save"}) | {
        "target_modules": list(_LORA.target_modules or ())
    }
    bare = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", **fields)).to(session.device)
    start = {peft_name(name, _LORA): value for name, value in session.read().items()}
    peft.set_peft_model_state_dict(bare, start)
    return bare


def run_bare(model: nn.Module, batches: list[dict[str, Tensor]], config: GradientConfig) -> None:
    """Train in the usual hand-written loop."""
    parameters = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )
    model.train()
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    loss.item()


def _same_order(order: list[int], epoch: int) -> list[int]:
    return order


def measure(session: Session, bare: nn.Module, turns: int, steps: int, batch_size: int) -> TurnSeconds:
    """Measure turns of `steps` steps each in alternating order, after one turn of warm-up."""
    config = GradientConfig(local_steps=steps, batch_size=batch_size)
    times = TurnSeconds()
    for turn in range(turns + 1):
        order = random.Random(turn).sample(range(session.examples), steps * batch_size)
        ready = [{**batch.inputs, "labels": batch.targets} for batch in session.batches(order, batch_size)]
        runs: list[tuple[list[float], Callable[[], object]]] = [
            (times.ours, partial(train, session, config, Hooks(order=partial(_same_order, order)))),
            (times.bare, partial(run_bare, bare, ready, config)),
        ]
        for seconds, run in runs if turn % 2 else runs[::-1]:
            torch.manual_seed(turn)
            start = time.perf_counter()
            run()
            if turn > 0:
                seconds.append(time.perf_counter() - start)
    return times


def same_bits(session: Session, bare: peft.PeftModel) -> bool:
    """True if both loops ended with the same trained tensors."""
    theirs: dict[str, Any] = peft.get_peft_model_state_dict(bare, save_embedding_layers=False)
    return all(torch.equal(value, theirs[peft_name(name, _LORA)].cpu()) for name, value in session.read().items())


def main() -> None:
    """Run the benchmark and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=minilm_folder())
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--threads", type=int, default=1, help="torch threads, as in the worker's setting training_threads"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        examples = arguments.steps * arguments.batch_size
        session = open_ours(Path(folder), arguments.model, examples, arguments.device)
    bare = make_bare(arguments.model, session)
    times = measure(session, bare, arguments.turns, arguments.steps, arguments.batch_size)
    ratio, equal = times.ratio(), same_bits(session, bare)
    details = {
        "seconds_ours": round(statistics.median(times.ours), 4),
        "seconds_bare": round(statistics.median(times.bare), 4),
        "turns": arguments.turns,
        "steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "same_bits": equal,
        "threads": torch.get_num_threads(),
        "device": arguments.device,
    }
    holds = ratio <= _TARGET_RATIO and equal
    print_report("training_overhead", ratio, "x", target=_TARGET_RATIO, holds=holds, details=details)


if __name__ == "__main__":
    main()
