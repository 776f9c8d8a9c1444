"""A draft with an invited organization, and the requests of that organization and of the owner."""

from dataclasses import dataclass
from typing import Any

import httpx

from tests.support.federation_rig import Actor, FederationRig
from tests.support.service import Organization, accept, created


@dataclass
class Draft:
    """A draft of the rig's owner to which a clinic is invited."""

    rig: FederationRig
    clinic: Organization

    @property
    def digest(self) -> str:
        return str(self.rig.show()["definition_digest"])

    def accept(self, digest: str | None = None, *, tag: str | None = None) -> httpx.Response:
        body = {} if digest is None else {"definition_digest": digest}
        headers = {} if tag is None else {"If-Match": tag}
        return self.clinic.owner.post(self.rig.path("accept"), json=body, headers=headers)

    def change(self, **changes: Any) -> httpx.Response:
        return self.rig.owner.owner.patch(self.rig.path(), json=changes, headers={"If-Match": "*"})

    def invitation(self) -> dict[str, Any]:
        (found,) = self.clinic.owner.get(self.rig.path("invitations")).json()["items"]
        return dict(found)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event["data"] for event in self.rig.get("events")["items"] if event["type"] == kind]

    def joined(self) -> Actor:
        """The clinic has accepted, and one of its data sets is registered."""
        accept(self.clinic.owner, self.rig.federation_id).raise_for_status()
        return self.rig.join(self.rig.actor(self.clinic))

    def client(self, actor: Actor) -> dict[str, Any]:
        return dict(actor.organization.owner.get(f"/v1/clients/{actor.client_id}").json())


def invited(rig: FederationRig) -> Draft:
    """A new draft of the rig's owner, and a clinic that is invited to it."""
    rig.create()
    clinic = rig.service.new_organization("clinic")
    created(rig.owner.owner.post(rig.path("invitations"), json={"organization_id": clinic.id}))
    return Draft(rig, clinic)
