"""Tokenizers of a few words for the models of the zoo."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tests.support.tiny_models import WORDS


@dataclass(frozen=True, slots=True)
class Tokens:
    """Special tokens in the order of their ids, the roles that they have, and what is put around a text.

    `letters`: the rest of the vocabulary is letters (transformers builds Qwen2's anew, as one of bytes), not words.
    """

    special: tuple[str, ...]
    roles: Mapping[str, str]
    around: str
    letters: bool = False

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A tokenizer that knows `tests.support.tiny_models.WORDS`, the special tokens first."""
        pieces = sorted({letter for word in WORDS for letter in word}) if self.letters else WORDS
        vocabulary = {piece: index for index, piece in enumerate([*self.special, *pieces])}
        if self.letters:
            vocabulary["Ġ"] = len(vocabulary)
            tokenizer = Tokenizer(BPE(vocabulary, []))
            tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
        else:
            tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=self.roles["unk_token"]))
            tokenizer.pre_tokenizer = Whitespace()
        if self.around:
            known = [(token, index) for index, token in enumerate(self.special)]
            tokenizer.post_processor = TemplateProcessing(single=self.around, special_tokens=known)
        make: Any = PreTrainedTokenizerFast
        fast: PreTrainedTokenizerFast = make(tokenizer_object=tokenizer, **self.roles)
        return fast


ENCODER = Tokens(
    ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    {
        "bos_token": "<s>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    },
    "<s> $A </s>",
)
"""Padding has the id 1, as RoBERTa's."""
DECODER = Tokens(("<unk>", "<s>", "</s>"), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, "<s> $A")
"""No padding token, as Llama's."""
GPT2 = Tokens(("<end>",), {"bos_token": "<end>", "eos_token": "<end>", "unk_token": "<end>"}, "")
"""One special token, and nothing is put around a text."""
QWEN2 = Tokens(("<|endoftext|>",), {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, "", letters=True)
"""Padding is the end of a text."""
