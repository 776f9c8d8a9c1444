"""Settings of FedProx."""

from pydantic import Field

from federated.contract import GradientConfig


class FedProxConfig(GradientConfig):
    """Local training as in `GradientConfig`, with FedProx's penalty."""

    mu: float = Field(default=0.01, ge=0, le=1e6, description="mu/2 * |w - w_received|^2 is added to the loss")
