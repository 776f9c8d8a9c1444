"""Settings of federated averaging."""

from typing import Literal

from pydantic import Field

from federated.contract import AnyTrainable, Beta, GradientConfig


class FedAvgConfig(GradientConfig):
    """Local training as in `GradientConfig`, and the server's step on the mean update."""

    proximal_mu: float = Field(
        default=0.0, ge=0, le=1e6, description="FedProx: mu/2 * |w - w_received|^2 on the loss"
    )
    server_optimizer: Literal["none", "momentum", "adagrad", "adam", "yogi"] = "none"
    server_learning_rate: float = Field(default=1.0, gt=0, le=100, description="1 with 'none' is plain averaging")
    server_betas: tuple[Beta, Beta] = Field(
        default=(0.9, 0.99), description="decay of the mean update; of its square with adam and yogi"
    )
    server_tau: float = Field(default=1e-3, gt=0, le=1, description="adaptivity of adagrad, adam and yogi")
    freeze_a: bool = Field(
        default=False, description="FFA-LoRA: the randomly initialized factor is not trained or sent"
    )
    upload_dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of the update's tensors")

    def check_trainable(self, trainable: AnyTrainable) -> None:
        """Raise ValueError for `freeze_a` with anything but LoRA."""
        if self.freeze_a and trainable.kind != "lora":
            raise ValueError(f"freeze_a needs a LoRA trainable, not {trainable.kind!r}")
