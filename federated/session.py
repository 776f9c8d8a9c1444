"""What the client half of an algorithm may ask of the worker that runs it.

One implementation stands in `worker_agent.training.session`. Tensor names are canonical everywhere: no
`base_model.model.`, no `.base_layer`, no `.default`; a tied tensor appears once.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from federated.trainable import ModelFacts


class Batch(Protocol):
    """Some examples, tokenised and on the device. `examples` is how many, `indices` which of the client's.

    `mask` (examples, tokens), bool: which tokens are an example's, and not filled up to the longest.
    """

    @property
    def examples(self) -> int: ...
    @property
    def indices(self) -> Sequence[int]: ...
    @property
    def mask(self) -> "Tensor": ...


class TrainingSession(Protocol):
    """A model with its adapter, one client's examples, and nothing else.

    `seed` is the job's, `federation_seed` the federation's (for starts that every client shares). `settings` are
    the client's own, given at registration. `trainables` are the parameters by canonical name. `used`: of which
    examples a loss was taken; a half takes those out again whose losses did not go into its update.
    """

    examples: int
    used: set[int]
    seed: int
    federation_seed: int
    settings: Mapping[str, Any]
    device: "torch.device"
    facts: "ModelFacts"
    model: "nn.Module"
    trainables: "Mapping[str, nn.Parameter]"

    def load(self, tensors: "Mapping[str, Tensor]") -> None:
        """Set trainable tensors by canonical name; one that starts from the base value is given as a difference.

        Raises KeyError for a name that is not trainable, ValueError for another shape.
        """

    def resize(self, ranks: Mapping[str, int], scalings: Mapping[str, float]) -> None:
        """Give the LoRA factors of these modules (canonical names) another rank and scale, until the job ends.

        `trainables` keep their names and identity; shapes follow the ranks, and values are undefined until `load`.
        Raises KeyError for a module without factors, ValueError for a rank below 1.
        """

    def leave_out_prompts(self, layers: Collection[int]) -> None:
        """Take the prompts out of these layers, until the job ends: they attend to the text alone."""

    def read(self, names: Collection[str] | None = None) -> "dict[str, Tensor]":
        """Copies (float32, CPU) of the trainable tensors, in the same form as `load` takes them."""

    def start(self, name: str) -> "Tensor":
        """The seeded start of a trainable tensor (float32, CPU), the same bits on every worker."""

    def layers(self) -> "Sequence[nn.Module]":
        """The transformer layers, lowest first."""

    def embeddings(self) -> "nn.Module":
        """The module that turns token ids into the first hidden states."""

    def train_all_except(self, names: Collection[str]) -> None:
        """Require gradients of all trainables but these, until the next call or the end of the job."""

    def training(self, mode: bool) -> None:
        """Switch the model between training (dropout) and evaluation."""

    def batches(self, order: Sequence[int], size: int) -> Iterator[Batch]:
        """The training examples `order` names, `size` at a time; the last batch may be smaller."""

    def split(self, batch: Batch, size: int) -> Iterator[Batch]:
        """The same examples in pieces of at most `size`."""

    def loss(self, batch: Batch, reduction: Literal["mean", "sum", "none"] = "mean") -> "Tensor":
        """Loss over the batch's examples: scalar, or one value per example for "none" (float32).

        A causal model's example counts the mean over its response tokens.
        """

    def differentiable_twice(self) -> AbstractContextManager[None]:
        """While the block runs, the gradient of `loss` has a gradient; fused attention has none, so it is not used.

        Raises JobDeclined where the model cannot do without it.
        """

    def evaluate(self) -> Mapping[str, float]:
        """Metrics on the held-out split with the model as it is: `loss`, the task's metrics, and `examples`."""

    def progress(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """Say how far the job is (steps). Raises JobInterrupted if the coordinator took the job back."""

    def note(self, fact: str) -> None:
        """Record something that breaks bit-for-bit repetition, such as "batch_halved"."""


class JobInterrupted(Exception):
    """The job was taken back while it ran; nothing of it is to be submitted."""
