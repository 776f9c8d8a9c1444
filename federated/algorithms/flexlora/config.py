"""Settings of FlexLoRA."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from federated.algorithms.flexlora.ranks import RankMix, setting_rank
from federated.bounds import MAX_SMALL
from federated.contract import AnyTrainable, GradientConfig
from federated.trainable import MAX_RANK, Lora

Aggregation = Literal["delta", "product", "rank_aware", "zero_pad", "stack"]


class FlexLoRAConfig(GradientConfig):
    """Local training as in `GradientConfig`. The trainable's ranks are the highest that any client trains."""

    aggregation: Aggregation = Field(
        default="delta", description="delta; product (the paper's); rank_aware; zero_pad (HetLoRA); stack (FLoRA)"
    )
    rank: Literal["auto", "full"] | RankMix | Annotated[int, Field(ge=1, le=MAX_RANK)] = Field(
        default="auto",
        description="auto: by the worker's free memory; full: the trainable's; a mix of the paper; or one for all. "
        "A client registered with a setting `rank` has that one; a node's max_rank is never exceeded",
    )
    auto_memory_share: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="share of the worker's free memory for factors in training, with `rank: auto`",
    )
    scaling: Literal["rslora", "lora"] = Field(
        default="rslora", description="alpha / sqrt(rank), or alpha / rank, with each client's own rank"
    )
    export_rank: int | None = Field(
        default=None, ge=1, le=MAX_RANK, description="rank of the adapter that users download; null: the trainable's"
    )
    base_rank: int | None = Field(
        default=None,
        ge=1,
        le=MAX_SMALL,
        description="stack: most learned ranks to keep; null: all, so nothing is lost",
    )
    oversampling: int = Field(default=100, ge=1, le=1000, description="of the randomized path for wide stacks")
    power_iterations: int = Field(default=2, ge=0, le=10, description="of the randomized path for wide stacks")
    upload_dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of the update's tensors")

    def check_trainable(self, trainable: AnyTrainable) -> None:
        """Raise ValueError if the settings do not suit the trainable's ranks, scaling or dropout."""
        if not isinstance(trainable, Lora):
            raise ValueError(f"flexlora trains LoRA factors, not {trainable.kind!r}")
        for name, rank in (("rank", self.rank), ("export_rank", self.export_rank)):
            if isinstance(rank, int) and rank > trainable.largest_rank:
                raise ValueError(f"{name}: {rank} is above the trainable's largest rank, {trainable.largest_rank}")
        if trainable.use_rslora and self.scaling == "lora":
            raise ValueError("scaling: 'lora' contradicts the trainable's use_rslora")
        if self.aggregation == "stack" and trainable.lora_dropout > 0:
            raise ValueError("aggregation: with 'stack' dropout would apply to ranks learned before; set it to 0")

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise ValueError for client settings other than {"rank": n}."""
        setting_rank(settings)

    def largest_rank(self, trainable: AnyTrainable, limit: int | None) -> int:
        """The trainable's largest rank, at most the node's limit."""
        largest = super().largest_rank(trainable, limit)
        return largest if limit is None else min(largest, limit)
