"""Response schemas of the installed algorithms."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from coordinator.web.pagination import Listing


class AlgorithmResponse(BaseModel):
    """An installed algorithm. `config_schema` is the JSON Schema of a federation's `config`."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(examples=["fedavg"])
    title: str
    revision: int = Field(description="workers must have the same revision")
    summary: str
    trainables: list[str] = Field(examples=[["lora", "prefix"]])
    personal: bool = Field(description="whether each client also gets a model of its own")
    distribution: str | None = Field(
        default=None, description="of a third party; null: Fedloom itself", examples=["fedloom-fedprox"]
    )
    config_schema: dict[str, Any]


class UnavailableAlgorithm(BaseModel):
    """An algorithm of another distribution that is installed but cannot be used."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(examples=["fedprox"])
    distribution: str = Field(examples=["fedloom-fedprox"])
    reason: str = Field(examples=["its package cannot be imported (ModuleNotFoundError)"])


class AlgorithmListing(Listing[AlgorithmResponse]):
    """One page of the algorithms. `unavailable` is the same on every page."""

    unavailable: list[UnavailableAlgorithm]
