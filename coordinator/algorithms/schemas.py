"""Response schema of an algorithm."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class AlgorithmResponse(BaseModel):
    """An installed algorithm. `config_schema` is the JSON Schema of a federation's `config`."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(examples=["fedavg"])
    title: str
    revision: int = Field(description="workers must have the same revision")
    summary: str
    trainables: list[str] = Field(examples=[["lora", "prefix"]])
    personal: bool = Field(description="whether each client also gets a model of its own")
    config_schema: dict[str, Any]
