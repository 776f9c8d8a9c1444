"""Fixtures for invitations."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.coordinator.clients.drafts import Draft
    from tests.support.federation_rig import FederationRig


@pytest.fixture
def draft(rig: "FederationRig") -> "Draft":
    """A draft of the rig's owner to which a clinic is invited."""
    from tests.coordinator.clients.drafts import invited  # loads torch, which most tests here do without

    return invited(rig)
