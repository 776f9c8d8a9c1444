"""A tiny text classifier in plain torch, with the parameter names of a model that PEFT wrapped."""

import torch
from torch import Tensor, nn

from federated.contract import AnyTrainable
from federated.trainable import Initialization, Lora, Prefix, TensorFacts

VOCABULARY = 24
HIDDEN = 8
LAYERS = 3
LABELS = 3
MAX_TOKENS = 6


class LowRankLinear(nn.Linear):
    """`weight x + bias + B A x * scaling`."""

    def __init__(self, lora: Lora | None) -> None:
        super().__init__(HIDDEN, HIDDEN)
        self.scaling = 0.0 if lora is None else lora.lora_alpha / lora.r
        if lora is not None:
            self.lora_dropout = nn.Dropout(lora.lora_dropout)
            self.lora_A = nn.Linear(HIDDEN, lora.r, bias=False)
            self.lora_B = nn.Linear(lora.r, HIDDEN, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        out = super().forward(hidden)
        if self.scaling:
            out = out + self.lora_B(self.lora_A(self.lora_dropout(hidden))) * self.scaling
        return out


class TinyLayer(nn.Module):
    """A residual step over (examples, tokens, hidden); a prefix joins the tokens that are averaged."""

    def __init__(self, lora: Lora | None) -> None:
        super().__init__()
        self.query = LowRankLinear(lora)

    def forward(self, hidden: Tensor, prefix: Tensor | None = None) -> Tensor:
        context = hidden if prefix is None else torch.cat([prefix.expand(len(hidden), -1, -1), hidden], dim=1)
        return torch.tanh(hidden + self.query(hidden) + context.mean(dim=1, keepdim=True))


class TinyModel(nn.Module):
    """Embeddings, three layers, a linear head over the mean of the tokens."""

    def __init__(self, trainable: AnyTrainable) -> None:
        super().__init__()
        lora = trainable if isinstance(trainable, Lora) else None
        self.embeddings = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(TinyLayer(lora) for _ in range(LAYERS))
        self.classifier = nn.Linear(HIDDEN, LABELS)
        self.virtual_tokens = 0
        self.without_prompts: frozenset[int] = frozenset()
        if isinstance(trainable, Prefix):
            self.virtual_tokens = trainable.num_virtual_tokens
            self.prompt_embeddings = nn.Parameter(torch.zeros(self.virtual_tokens, LAYERS * 2 * HIDDEN))
        generator = torch.Generator().manual_seed(20_240_601)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embeddings(tokens)
        for index, layer in enumerate(self.layers):
            prefix = None
            if self.virtual_tokens and index not in self.without_prompts:
                prefix = self.prompt_embeddings[:, 2 * index * HIDDEN : (2 * index + 1) * HIDDEN]
            hidden = layer(hidden, prefix)
        logits: Tensor = self.classifier(hidden.mean(dim=1))
        return logits


def tensor_facts(model: TinyModel, trainable: AnyTrainable) -> tuple[TensorFacts, ...]:
    """The trainable tensors and their starts, sorted by name."""
    facts = []
    for name, parameter in sorted(model.named_parameters()):
        initialization = _initialization(name, trainable)
        if initialization is not None:
            shape = tuple(parameter.shape)
            facts.append(TensorFacts(name=name, shape=shape, dtype="F32", initialisation=initialization))
    return tuple(facts)


def _initialization(name: str, trainable: AnyTrainable) -> Initialization | None:
    if ".lora_A." in name:
        return Initialization(kind="uniform", scale=HIDDEN**-0.5)
    if ".lora_B." in name or name == "classifier.bias":
        return Initialization(kind="zeros")
    if name == "classifier.weight":
        return Initialization(kind="normal", scale=0.2)
    if name == "prompt_embeddings" and isinstance(trainable, Prefix):
        return Initialization(kind="normal", scale=trainable.init_std)
    trains_biases = isinstance(trainable, Lora) and trainable.bias != "none"
    if trainable.kind == "full" or (trains_biases and name.endswith("query.bias")):
        return Initialization(kind="base")
    return None
