"""Reads the audit log over HTTP."""

from typing import Any

import httpx

from tests.support.service import Service


def entries(client: httpx.Client, path: str, **query: Any) -> list[dict[str, Any]]:
    """The entries of a list that fits on one page."""
    answer = client.get(path, params={"limit": 200, **query})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


def chain_of(service: Service, organization_id: str) -> list[dict[str, Any]]:
    """All entries of an organization's chain."""
    return entries(service.admin, f"/v1/organizations/{organization_id}/audit")


def actions(found: list[dict[str, Any]]) -> list[str]:
    """What was done, in order."""
    return [entry["action"] for entry in found]
