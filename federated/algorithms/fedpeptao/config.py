"""Settings of FedPepTAO."""

from dataclasses import replace
from typing import Literal

from pydantic import Field

from federated.contract import Effort, GradientConfig
from federated.maths.hessian_cost import LANCZOS_STEPS, PASSES_BESIDE_PRODUCTS


class FedPepTAOConfig(GradientConfig):
    """Local training as in `GradientConfig` with the paper's values, selection of layers, and the server's step."""

    local_epochs: float = Field(default=2.0, gt=0, le=1000, description="used when local_steps is null")
    batch_size: int = Field(default=8, ge=1, le=4096, description="examples per optimizer step")
    learning_rate: float = Field(default=0.04, gt=0, le=100)
    weight_decay: float = Field(default=0.1, ge=0, le=1)

    moments: Literal["reset", "persist"] = Field(
        default="reset",
        description="state of the local optimizer: fresh in each round, or kept in the client's memory",
    )

    score_examples: int = Field(default=8, ge=8, le=256, description="examples of the batch that scores the layers")
    skip_last: bool = Field(default=False, description="the last layer never travels, as in the published code")
    layer_count: Literal["fixed", "spectrum", "eigengap"] = Field(
        default="fixed", description="number of layers that travel: a share, or by an estimate from the Hessian"
    )
    layer_share: float = Field(default=0.5, gt=0, le=1, description="of the layers, with 'fixed'")
    warmup_rounds: int = Field(
        default=1, ge=0, le=100, description="rounds with all layers before the Hessian is measured; not with 'fixed'"
    )
    other_layers: Literal["local", "masked"] = Field(
        default="local",
        description="layers that do not travel: trained and private, or without a prompt (in simulations only)",
    )

    server_lr: float = Field(default=0.05, ge=0, le=10, description="0 disables the server's own step")
    server_lr_decay: float = Field(default=0.99, gt=0, le=1, description="per round")
    server_lr_floor: float = Field(default=1e-4, ge=0, le=10, description="lowest rate")
    server_beta: float = Field(default=0.9, ge=0, lt=1, description="decay of the server's momentum")
    server_mode: Literal["independent", "chained"] = Field(
        default="independent", description="'chained' applies the clients' steps in sequence, like the published code"
    )
    server_grad: Literal["diff", "delta"] = Field(
        default="diff", description="quantity averaged by the momentum: the change of the mean update, or the update"
    )
    control_variates: bool = True
    cv_update: Literal["scaffold2", "avg_grad"] = "scaffold2"

    def check_served(self) -> None:
        """Raise ValueError for masked layers: no PEFT adapter can express a layer without a prompt."""
        if self.other_layers == "masked":
            raise ValueError("other_layers 'masked' is for simulations: no adapter of PEFT can leave out a layer")

    def most_effort(self, kind: Literal["prepare", "train"], examples: int) -> Effort:
        """Effort of a job. Preparation adds a pass for the layer scores and the Hessian's products with vectors."""
        training = super().most_effort(kind, examples)
        if kind == "train":
            return training
        uses = 1 if self.layer_count == "fixed" else 1 + PASSES_BESIDE_PRODUCTS + LANCZOS_STEPS
        share = min(1.0, self.score_examples / max(1, examples))
        return replace(training, passes=training.passes + uses * share)

    @property
    def warms_up(self) -> bool:
        """Whether there are rounds of training before the layers are measured."""
        return self.layer_count != "fixed" and self.warmup_rounds > 0
