"""Requests and responses of the invitation and client endpoints."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from coordinator.clients.terms import Terms, terms_of
from coordinator.models import Client, Federation, Invitation
from federated.bounds import FreeForm
from federated.protocol import Digest, Name

REASON_CHARACTERS = 2000
_TERMS_FIELDS = ("task", "base_model", "trainable", "algorithm", "config", "rounds")


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InvitationCreate(_Request):
    """An invitation of an organization."""

    organization_id: str = Field(min_length=1, max_length=64, examples=["org_5f1k2m3n4p5q6r7s"])


class Reason(_Request):
    """A reason, shown to the other side."""

    reason: str | None = Field(default=None, max_length=REASON_CHARACTERS, examples=["the ethics board said no"])


class Acceptance(_Request):
    """The definition to accept. Its digest may be sent as `If-Match` instead."""

    definition_digest: Digest | None = Field(
        default=None,
        description="as shown by the invitation or the federation",
        examples=["sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"],
    )


class ClientCreate(_Request):
    """A worker's data set to register as a client."""

    worker_id: str = Field(min_length=1, max_length=64, examples=["wkr_5f1k2m3n4p5q6r7s"])
    dataset: Name = Field(examples=["tickets"])
    name: Name | None = Field(default=None, description="null: the names of worker and data set")
    settings: FreeForm = Field(
        default_factory=dict, description="settings of this client, if the algorithm has any", examples=[{}]
    )
    evaluates_only: bool = Field(default=False, description="true: evaluates, and is never drawn to train")


class InvitationResponse(Terms):
    """An organization's invitation to a federation, with the terms of participation."""

    federation_id: str
    federation_name: str
    federation_state: str
    owner_organization_id: str
    owner_organization_name: str
    organization_id: str
    organization_name: str
    state: str = Field(description="invited, accepted, declined, left or removed")
    reason: str | None
    created_at: datetime
    answered_at: datetime | None
    task: dict[str, Any]
    base_model: dict[str, Any]
    trainable: dict[str, Any]
    algorithm: str
    config: dict[str, Any]
    rounds: int
    definition_digest: str = Field(description="of name, owner and whole definition; `accept` refers to it")
    agreed_digest: str | None = Field(description="the `definition_digest` that was accepted; null for the owner")


class ClientResponse(BaseModel):
    """A worker's data set in a federation."""

    id: str
    federation_id: str
    organization_id: str
    worker_id: str
    name: str
    dataset: str
    ordinal: int
    state: str = Field(description="registered, ready, out, left or expelled")
    reason: str | None
    reason_detail: str | None
    settings: dict[str, Any]
    evaluates_only: bool
    examples: int | None
    evaluation_examples: int | None = Field(
        description="held-out examples; 0: none, or too few for its node to report metrics"
    )
    rounds_taken: int
    created_at: datetime


def client_response(client: Client) -> ClientResponse:
    return ClientResponse.model_validate(client, from_attributes=True)


def invitation_response(
    invitation: Invitation, federation: Federation, names: Mapping[str, str]
) -> InvitationResponse:
    """`names`: organization id -> name, of owner and invited organization."""
    definition = federation.definition
    return InvitationResponse(
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
        **{name: definition[name] for name in _TERMS_FIELDS},
        definition_digest=federation.definition_digest,
        agreed_digest=invitation.agreed_digest,
        **dict(terms_of(definition)),
    )
