"""Export and merge across model types: the written model is the one that the session evaluated, or it is rejected.

Every model of the zoo is tested with every task that it supports, and every option with several models.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from federated.merge import merge
from federated.trainable import Lora
from tests.support import zoo
from tests.support.written_models import Evaluated, config_of, evaluated
from tests.support.zoo_architectures import Kind

Option = Callable[[Kind], dict[str, Any]]

ROUNDED = {"bert-half": 1e-2, "llama-bfloat16": 0.15}
"""How far the logits move when the merged weights are rounded to narrower numbers, relative to the largest."""
EXACT = 1e-4


def linear(kind: Kind) -> Any:
    """All linear maps; beside experts, those of the attention."""
    return ("q_proj", "v_proj") if "num_experts_per_tok" in kind.fields else "all-linear"


ANYWHERE: Mapping[str, Option] = {
    "all-linear": lambda kind: {"target_modules": linear(kind)},
    "biases and rslora": lambda kind: {"target_modules": linear(kind), "bias": "all", "use_rslora": True, "r": 3},
    "biases of the adapted": lambda kind: {"target_modules": linear(kind), "bias": "lora_only"},
    "ranks and alphas of their own": lambda kind: {
        "target_modules": linear(kind), "rank_pattern": {"*.0.*": 4}, "alpha_pattern": {"*.0.*": 7.5},
    },
    "factors on the embedding": lambda kind: {"target_modules": (kind.embedding,)},
    "the embedding saved": lambda kind: {"target_modules": linear(kind), "modules_to_save": (kind.embedding,)},
    "norms saved": lambda kind: {
        "target_modules": linear(kind), "modules_to_save": (kind.norm or kind.embedding,),
    },
}  # fmt: skip
OF_A_LANGUAGE_HEAD: Mapping[str, Option] = {
    "the head saved": lambda kind: {"target_modules": linear(kind), "modules_to_save": (kind.output,)},
    "factors on the head": lambda kind: {"target_modules": (kind.output,)},
    "factors on the embedding, the head saved": lambda kind: {
        "target_modules": (kind.embedding,), "modules_to_save": (kind.output,),
    },
    "embedding and head saved": lambda kind: {
        "target_modules": linear(kind), "modules_to_save": (kind.embedding, kind.output),
    },
}  # fmt: skip
OPTIONS = {**ANYWHERE, **OF_A_LANGUAGE_HEAD}


def covering() -> Iterator[tuple[str, str, str]]:
    """Each kind with each of its tasks, the options in turn."""
    turns = {"classifier": cycle(ANYWHERE), "causal_lm": cycle(OPTIONS), "cloze": cycle(reversed(OPTIONS))}
    for name, kind in zoo.KINDS.items():
        for task in sorted(kind.tasks):
            yield name, task, next(turns[task])


SHARED = [
    (name, "causal_lm", option)
    for name, options in {
        "llama-tied": ("the embedding saved", "factors on the embedding", "the head saved"),
        "gpt2": ("the embedding saved", "factors on the embedding", "embedding and head saved"),
        "gpt2-both-copies": ("the embedding saved", "factors on the head", "all-linear"),
        "llama-tied-shards": ("factors on the embedding", "the head saved"),
        "gemma3-vision": ("the embedding saved", "factors on the head"),
    }.items()
    for option in options
]
RENAMED = [("bert-gamma-beta", task, option) for task in ("classifier", "cloze") for option in list(ANYWHERE)[1::2]]
ANOTHER_HEAD = [("bert-with-two-labels", "classifier", option) for option in ("all-linear", "the embedding saved")]
CASES = sorted({*covering(), *SHARED, *RENAMED, *ANOTHER_HEAD})


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning")
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize(("name", "task", "option"), CASES)
def test_what_is_written_is_what_was_evaluated(root: Path, tmp_path: Path, name: str, task: str, option: str) -> None:
    lora = Lora(**{"r": 2, "lora_alpha": 4, **OPTIONS[option](zoo.KINDS[name])})
    evaluation = evaluated(name, root, task, lora)
    assert not torch.allclose(evaluation.before, evaluation.logits, atol=1e-2)
    adapter = evaluation.write(tmp_path / "adapter")
    assert_as_told(evaluation, peft.PeftModel.from_pretrained(evaluation.loaded_base(), adapter), EXACT)
    merge(adapter, evaluation.base, tmp_path / "merged")
    opened = evaluation.opened(tmp_path / "merged")
    assert_as_told(evaluation, opened, ROUNDED.get(name, EXACT))
    assert_configured(evaluation, opened, config_of(tmp_path / "merged"))


def assert_as_told(evaluation: Evaluated, model: Any, error: float) -> None:
    """Hold a model's logits against the session's, relative to the largest."""
    scale = max(1.0, float(evaluation.logits.abs().max()))
    torch.testing.assert_close(evaluation.logits_of(model), evaluation.logits, rtol=0, atol=error * scale)


def assert_configured(evaluation: Evaluated, model: Any, config: dict[str, Any]) -> None:
    """The configuration says the class that was trained, its labels, and whether its embeddings are one tensor."""
    assert config["architectures"] == [type(model).__name__]
    if evaluation.session.facts.task_type == "SEQ_CLS":
        assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
        assert "problem_type" not in config
    output = model.get_output_embeddings()
    if output is not None:
        shared = output.weight is model.get_input_embeddings().weight
        assert shared == config.get("tie_word_embeddings", model.config.get_text_config().tie_word_embeddings)
