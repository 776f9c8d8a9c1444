"""Requests and answers about invitations and clients."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from coordinator.models import Client, Federation, Invitation
from federated.protocol import Name, TaskDefinition
from federated.trainable import Full, Lora, Prefix, Trainable

REASON_CHARACTERS = 2000


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InvitationCreate(_Request):
    """Which organisation is invited."""

    organization_id: str = Field(min_length=1, max_length=64, examples=["org_5f1k2m3n4p5q6r7s"])


class Reason(_Request):
    """Why; shown to the federation's owner."""

    reason: str | None = Field(default=None, max_length=REASON_CHARACTERS, examples=["the ethics board said no"])


class ClientCreate(_Request):
    """A worker's data set that is to take part."""

    worker_id: str = Field(min_length=1, max_length=64, examples=["wkr_5f1k2m3n4p5q6r7s"])
    dataset: Name = Field(examples=["tickets"])
    name: Name | None = Field(default=None, description="null: the names of worker and data set")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="of this client, if the algorithm knows any", examples=[{}]
    )
    evaluates_only: bool = Field(default=False, description="never drawn to train, asked to evaluate alone")


class InvitationAnswer(BaseModel):
    """An organisation's part in a federation, and what taking part means for it."""

    federation_id: str
    federation_name: str
    federation_state: str
    owner_organization_id: str
    owner_organization_name: str
    organization_id: str
    organization_name: str
    state: str = Field(description="invited, accepted, declined or left")
    reason: str | None
    created_at: datetime
    answered_at: datetime | None
    task: TaskDefinition
    base_model: dict[str, Any]
    trainable: dict[str, Any]
    algorithm: str
    config: dict[str, Any]
    rounds: int
    leaves_your_site: list[str] = Field(description="all that workers send to the coordinator")
    stays_at_your_site: list[str]


class ClientAnswer(BaseModel):
    """A worker's data set in a federation."""

    id: str
    federation_id: str
    organization_id: str
    worker_id: str
    name: str
    dataset: str
    ordinal: int
    state: str = Field(description="registered, ready, out or left")
    reason: str | None
    reason_detail: str | None
    settings: dict[str, Any]
    evaluates_only: bool
    examples: int | None
    evaluation_examples: int | None
    rounds_taken: int
    created_at: datetime


class _Definition(BaseModel):
    model_config = ConfigDict(extra="ignore")

    task: TaskDefinition
    base_model: dict[str, Any]
    trainable: Trainable
    algorithm: str
    config: dict[str, Any]
    rounds: int


def client_answer(client: Client) -> ClientAnswer:
    """The answer for a client."""
    return ClientAnswer.model_validate(client, from_attributes=True)


def invitation_answer(invitation: Invitation, federation: Federation, names: Mapping[str, str]) -> InvitationAnswer:
    """The answer for an invitation; `names` holds those of both organisations."""
    definition = _Definition.model_validate(federation.definition)
    return InvitationAnswer(
        federation_id=federation.id,
        federation_name=federation.name,
        federation_state=federation.state,
        owner_organization_id=federation.organization_id,
        owner_organization_name=names[federation.organization_id],
        organization_id=invitation.organization_id,
        organization_name=names[invitation.organization_id],
        state=invitation.state,
        reason=invitation.reason,
        created_at=invitation.created_at,
        answered_at=invitation.answered_at,
        task=definition.task,
        base_model=definition.base_model,
        trainable=definition.trainable.model_dump(mode="json"),
        algorithm=definition.algorithm,
        config=definition.config,
        rounds=definition.rounds,
        leaves_your_site=leaves_the_site(definition.trainable, definition.task, definition.algorithm),
        stays_at_your_site=["texts and labels of every example", "what a client remembers between rounds"],
    )


def leaves_the_site(trainable: Lora | Prefix | Full, task: TaskDefinition, algorithm: str) -> list[str]:
    """All that a worker sends out for a federation, in words."""
    metrics = ", ".join(("loss", *task.metrics))
    labels = ["which labels occur in the data set"] if task.labels is not None else []
    return [
        f"each round it is drawn for: an update of {_trained(trainable)}, as {algorithm} makes it",
        "number of examples trained on, the weight of the update, and the number of held-out examples",
        *labels,
        f"{metrics} of training and evaluation: one number each",
        "names and shapes of the trained tensors and the SHA-256 of the base model's weights",
        "seconds and bytes of each job, device, software versions",
    ]


def _trained(trainable: Lora | Prefix | Full) -> str:
    if isinstance(trainable, Lora):
        return f"LoRA factors (r={trainable.r}) of {_targets(trainable.target_modules)}{_saved(trainable)}"
    if isinstance(trainable, Prefix):
        return f"a prefix of {trainable.num_virtual_tokens} virtual tokens in every layer"
    return f"the weights {', '.join(trainable.names)}" if trainable.names else "all weights"


def _targets(modules: tuple[str, ...] | str | None) -> str:
    if modules is None:
        return "the modules PEFT chooses for this model"
    return modules if isinstance(modules, str) else ", ".join(modules)


def _saved(trainable: Lora) -> str:
    if trainable.modules_to_save is None:
        return ", and the head of a classifier"
    return f", and {', '.join(trainable.modules_to_save)} in full" if trainable.modules_to_save else ""
