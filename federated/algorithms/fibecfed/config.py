"""Settings of FibecFed."""

import math
from typing import Annotated, Literal

from pydantic import Field

from federated.contract import AnyTrainable, Effort, GradientConfig
from federated.maths.hessian_cost import PASSES_BESIDE_PRODUCTS
from federated.trainable import Lora


class FibecFedConfig(GradientConfig):
    """Local training as in `GradientConfig`, the order of examples, the layers that travel, and the private part."""

    order_by: Literal["fisher", "loss", "length", "random", "reversed"] = Field(
        default="fisher", description="measure of difficulty; reversed: hard examples first; random: the control"
    )
    score_at: Literal["start", "after_warmup"] = Field(
        default="start",
        description="point at which examples and layers are scored; after_warmup: after `preparation_steps`",
    )
    score_batch_size: int = Field(default=32, ge=1, le=4096, description="examples per pass when scoring")
    pacing: Literal["linear", "sqrt", "quadratic", "exponential", "step", "none"] = Field(
        default="linear", description="growth of the share of admitted examples; none: all from the first round"
    )
    pacing_start: float = Field(default=0.6, gt=0, le=1, description="share of the batches admitted at the start")
    pacing_share: float = Field(
        default=0.8, gt=0, le=1, description="share of the rounds after which all are admitted"
    )
    ordered: bool = Field(
        default=False, description="train from easy to hard, instead of shuffling the admitted examples"
    )

    layer_count: Literal["spectrum", "eigengap", "fixed"] = Field(
        default="spectrum", description="number of layers that travel: by an estimate from the Hessian, or a share"
    )
    layer_share: float = Field(default=0.5, gt=0, le=1, description="of the layers, with 'fixed'")
    layer_factor: float = Field(default=1.0, gt=0, le=10, description="factor on the share of layers")
    layer_noise: Literal["adversarial", "gaussian"] = "adversarial"
    layer_noise_at: Literal["input", "layer"] = Field(
        default="input", description="noise on the embeddings, or on each layer's own input"
    )
    layer_noise_size: float = Field(
        default=0.01, gt=0, le=1, description="norm of the noise, as a share of the norm of the tensor it is added to"
    )
    layer_noise_norm: Annotated[float, Field(ge=1.1, le=100)] | Literal["inf"] = Field(
        default=2.0, description="p of the norm in which adversarial noise is the worst"
    )
    layer_score_examples: int = Field(
        default=512, ge=32, le=1_000_000, description="most examples of a client that score the layers"
    )
    lanczos_steps: int = Field(default=50, ge=2, le=500)
    preparation_steps: int = Field(
        default=10, ge=0, le=10_000, description="steps of the warm-up before the Hessian, undone afterwards"
    )

    local_share: float = Field(
        default=0.5, ge=0, le=1, description="share of a private matrix's rows that are trained"
    )
    fisher_momentum: float = Field(default=0.9, ge=0, lt=1)
    fisher_epochs: float = Field(
        default=1.0, gt=0, le=100, description="epochs of the warm-up that chooses the rows, undone afterwards"
    )

    head: Literal["last", "all"] = Field(
        default="last",
        description="trained maps of a classifier's head of several, unless the trainable names its modules",
    )
    upload_dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of the update's tensors")

    def most_effort(self, kind: Literal["prepare", "train"], examples: int) -> Effort:
        """Effort of a job, with the work of a client that missed the preparation or lost its memory of it."""
        if kind == "train":
            steps = self.planned_steps(examples) + self._row_steps(examples)
            steps += self.preparation_steps if self.score_at == "after_warmup" else 0
            return Effort(steps, self.effort_of(steps, examples).passes + 1, self._fewest(examples))
        passes = 1 + 2 * _share(self.layer_score_examples, examples)
        if self.layer_count != "fixed":
            passes += (PASSES_BESIDE_PRODUCTS + self.lanczos_steps) * _share(self.batch_size, examples)
        return Effort(self.preparation_steps, self.effort_of(self.preparation_steps, examples).passes + passes)

    def _fewest(self, examples: int) -> int:
        """Examples of an update when the fewest are admitted, in whole batches."""
        batches = math.ceil(examples / self.batch_size)
        share = 1.0 if self.pacing == "none" else self.pacing_start
        return self.lasting_examples(min(examples, math.ceil(batches * share - 1e-9) * self.batch_size))

    def _row_steps(self, examples: int) -> int:
        return self.model_copy(update={"local_steps": None, "local_epochs": self.fisher_epochs}).planned_steps(
            examples
        )

    def check_trainable(self, trainable: AnyTrainable) -> None:
        """Raise ValueError for trained biases, because rows of factors are chosen here."""
        if isinstance(trainable, Lora) and trainable.bias != "none":
            raise ValueError("fibecfed trains the factors and the head: bias must be 'none'")


def _share(size: int, examples: int) -> float:
    return min(1.0, size / max(1, examples))
