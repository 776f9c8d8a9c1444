"""The interface between an algorithm's client half and the worker that runs it.

`worker_agent.training.session` implements it. Tensor names are canonical everywhere: without `base_model.model.`,
`.base_layer` and `.default`. A tied tensor appears once.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from federated.trainable import ModelFacts


class Batch(Protocol):
    """Tokenized examples on the device. `examples` is their number, `indices` their positions in the client's data.

    `mask`: (examples, tokens), bool, False for padding.
    """

    @property
    def examples(self) -> int: ...
    @property
    def indices(self) -> Sequence[int]: ...
    @property
    def mask(self) -> "Tensor": ...


class TrainingSession(Protocol):
    """A model with its adapter, and one client's examples.

    `seed` is the seed of the job, `federation_seed` the seed of initial values that all clients share. `settings` are
    from the client's registration. `trainables` are the parameters by canonical name. `used` has the indices of the
    examples in calls of `loss`. A half removes those whose losses did not contribute to its update.
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
        """Set trainable tensors by canonical name. A tensor that starts from the base value is set by its difference.

        Raises KeyError for a name that is not trainable, ValueError for a wrong shape.
        """

    def resize(self, ranks: Mapping[str, int], scalings: Mapping[str, float]) -> None:
        """Change rank and scale of these modules' LoRA factors (canonical names) until the job ends.

        `trainables` keep their names and identity. Shapes follow the ranks. Values are undefined until `load`.
        Raises KeyError for a module without factors, ValueError for a rank below 1.
        """

    def leave_out_prompts(self, layers: Collection[int]) -> None:
        """Remove the prompts from these layers until the job ends, so that they attend to the text only."""

    def read(self, names: Collection[str] | None = None) -> "dict[str, Tensor]":
        """Copies (float32, CPU) of the trainable tensors, in the form that `load` takes."""

    def start(self, name: str) -> "Tensor":
        """The seeded initial value of a trainable tensor (float32, CPU), the same bits on every worker."""

    def layers(self) -> "Sequence[nn.Module]":
        """The transformer layers, lowest first."""

    def embeddings(self) -> "nn.Module":
        """The module that maps token ids to the first hidden states."""

    def train_all_except(self, names: Collection[str]) -> None:
        """Freeze these trainables until the job ends or the next call. All others require a gradient."""

    def training(self, mode: bool) -> None:
        """Switch the model between training (dropout) and evaluation."""

    def batches(self, order: Sequence[int], size: int) -> Iterator[Batch]:
        """The training examples with indices `order`, in batches of `size`. The last batch may be smaller."""

    def split(self, batch: Batch, size: int) -> Iterator[Batch]:
        """The same examples in batches of at most `size`."""

    def loss(self, batch: Batch, reduction: Literal["mean", "sum", "none"] = "mean") -> "Tensor":
        """Loss over the batch's examples: scalar, or one value per example for "none" (float32).

        The loss of a causal model's example is the mean over its response tokens.
        """

    def differentiable_twice(self) -> AbstractContextManager[None]:
        """Context in which the gradient of `loss` is differentiable. It disables fused attention, which is not.

        Raises JobDeclined if the model needs fused attention.
        """

    def evaluate(self) -> Mapping[str, float]:
        """Metrics of the current model on the held-out split: `loss`, the task's metrics, and `examples`."""

    def progress(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """Report progress in steps. Raises JobInterrupted if the coordinator has withdrawn the job."""

    def record_nondeterminism(self, fact: str) -> None:
        """Record an event that prevents a bit-for-bit repetition, such as "batch_halved"."""


class JobInterrupted(Exception):
    """The coordinator withdrew the job while it ran. Its result must not be submitted."""
