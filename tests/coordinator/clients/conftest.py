"""Fixtures for invitations."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.coordinator.clients.drafts import Draft
    from tests.support.stage import Stage


@pytest.fixture
def draft(stage: "Stage") -> "Draft":
    """A draft of the stage's owner to which a clinic is invited."""
    from tests.coordinator.clients.drafts import invited  # loads torch, which most tests here do without

    return invited(stage)
