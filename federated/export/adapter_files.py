"""Writer of the files that users download: a PEFT adapter or a ledger, with a model card.

The bytes of the tensor file are a function of the tensors alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

from federated.contract import Adapter, AnyTrainable
from federated.payloads.payload import Payload
from federated.printable import printable
from federated.trainable import Full, ModelFacts, adapter_config, peft_name


def write_adapter(
    folder: Path,
    adapter: Adapter,
    trainable: AnyTrainable,
    model: ModelFacts,
    base_model: str,
    card: Mapping[str, Any],
) -> list[Path]:
    """Write an adapter's files into `folder` and return their paths, tensors first.

    Kind "peft": `adapter_model.safetensors` and `adapter_config.json`, which `peft.PeftModel.from_pretrained` opens
    unchanged. Kind "ledger": `ledger.safetensors`. Both have a `README.md` with a table of the items of `card`.
    Raises ValueError for weights trained in full, which PEFT's format cannot store.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if adapter.kind == "ledger":
        tensors = folder / "ledger.safetensors"
        Payload(adapter.tensors, adapter.facts).write(tensors)
        files = [tensors]
    else:
        files = _write_peft(folder, adapter, trainable, model, base_model)
    readme = folder / "README.md"
    readme.write_text(_model_card(adapter, base_model, {**card, **_base_facts(model)}), encoding="utf-8")
    return [*files, readme]


def _write_peft(
    folder: Path, adapter: Adapter, trainable: AnyTrainable, model: ModelFacts, base_model: str
) -> list[Path]:
    if isinstance(trainable, Full):
        raise ValueError("weights trained in full cannot be written as a PEFT adapter")
    names = _peft_names(sorted(adapter.tensors), trainable)
    by_peft_name = {peft: adapter.tensors[name].contiguous() for name, peft in names.items()}
    tensors, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors.write_bytes(save(by_peft_name, metadata={"format": "pt"}))
    fields = _with_whole_alphas(adapter_config(trainable, model, base_model) | dict(adapter.config))
    # Fields are sorted, but not ranks and alphas, whose order is significant.
    config.write_text(json.dumps(dict(sorted(fields.items())), indent=2) + "\n", encoding="utf-8")
    return [tensors, config]


def _with_whole_alphas(fields: dict[str, Any]) -> dict[str, Any]:
    """Alphas in the form that other readers of the format expect: 16, not 16.0."""
    if "lora_alpha" not in fields:
        return fields
    by_module = {module: _whole(alpha) for module, alpha in (fields.get("alpha_pattern") or {}).items()}
    return fields | {"lora_alpha": _whole(fields["lora_alpha"]), "alpha_pattern": by_module}


def _whole(alpha: float) -> float:
    return int(alpha) if float(alpha).is_integer() else alpha


def _peft_names(names: list[str], trainable: AnyTrainable) -> dict[str, str]:
    # PEFT stores the trained bias of an adapted module under its `base_layer`, and ignores any other name.
    lora_modules = {name.partition(".lora_")[0] for name in names if ".lora_" in name}
    peft_names = {}
    for name in names:
        module, _, leaf = name.rpartition(".")
        # An embedding's factors are parameters of the adapted module itself.
        in_base_layer = module in lora_modules and not leaf.startswith("lora_")
        peft_names[name] = peft_name(f"{module}.base_layer.{leaf}" if in_base_layer else name, trainable)
    return peft_names


def _base_facts(model: ModelFacts) -> dict[str, str]:
    return {"base model type": model.model_type, "base weights": model.weights_digest}


def _model_card(adapter: Adapter, base_model: str, card: Mapping[str, Any]) -> str:
    library = "peft" if adapter.kind == "peft" else "fedloom"
    # A JSON string is a valid YAML string, whatever the model is called.
    front = [
        "---",
        f"base_model: {json.dumps(printable(base_model))}",
        f"library_name: {library}",
        "tags: [federated]",
        "---",
    ]
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in card.items()]
    table = ["| | |", "|---|---|", *rows]
    return "\n".join([*front, "", "# Adapter trained by a federation", "", *table, "", _usage(adapter), ""])


def _cell(value: object) -> str:
    """A table cell: words and numbers as they are, other text as a code span without links, images or HTML."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    if isinstance(value, int | float) or (text.isascii() and text.isalnum()):
        return text
    # A `|` ends the cell even in a code span, and a `\\` before an escaped one would undo the escape.
    line = " ".join(printable(text).replace("`", "'").replace("\\", "/").replace("|", "\\|").split())
    return f"`{line}`" if line else ""


def _usage(adapter: Adapter) -> str:
    if adapter.kind == "peft":
        return (
            "Open it with `peft.PeftModel.from_pretrained(base_model, folder)`, where `base_model` is loaded from "
            "weights of the digest above. `base_model_name_or_path` is what the federation calls them: on a hub that "
            "name may be somebody else's, and `AutoPeftModel` would load what is there."
        )
    return "Apply it to the base model with `python -m federated.merge FOLDER BASE OUT`."
