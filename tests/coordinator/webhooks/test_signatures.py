"""Signatures of webhook messages, verified by a real receiver with the code of the guide for users."""

import hashlib
import hmac
import json
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from standardwebhooks import WebhookVerificationError

from coordinator.db.sessions import utcnow, writing
from coordinator.models import Webhook
from coordinator.webhooks.lifecycle import new_secret, signature_headers
from tests.support.federation_rig import FederationRig
from tests.support.receiver import Receiver
from tests.support.service import created

pytestmark = pytest.mark.usefixtures("local_receivers")
GUIDE = Path(__file__).parents[3] / "docs/users.md"


def create_webhook(rig: FederationRig, receiver: Receiver) -> dict[str, Any]:
    """A webhook of the rig's owner for new federations."""
    body = {"url": receiver.url, "events": ["federation.created"]}
    return created(rig.owner.owner.post(f"/v1/organizations/{rig.owner.id}/webhooks", json=body))


def guide_function(name: str) -> Callable[..., Any]:
    """A function of the guide for users."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if f"def {name}(" in block)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - our own guide
    function: Callable[..., Any] = names[name]
    return function


def is_old_signature_genuine(secret: str, header: str, body: bytes) -> bool:
    """Verification of the deprecated header, as the guide of release 0.1 had it, without the check of the time."""
    parts = dict(part.split("=", 1) for part in header.split(","))
    expected = hmac.new(secret.encode(), parts["t"].encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, parts["v1"])


def test_the_verifiers_in_the_guide_take_the_signature_and_no_other(rig: FederationRig, receiver: Receiver) -> None:
    secret = create_webhook(rig, receiver)["secret"]
    rig.create()
    rig.settle()
    (message,) = receiver.messages
    headers, body = message.headers, message.body
    is_genuine, verify = guide_function("is_genuine"), guide_function("verify")
    assert is_genuine(secret, headers, body)
    assert verify(secret, headers, body) == json.loads(body)
    assert headers["webhook-id"] == headers["Fedloom-Delivery"] == json.loads(body)["id"]
    earlier = str(int(headers["webhook-timestamp"]) - 1)
    for other_secret, other_headers, other_body in (
        ("whsec_" + secret[6:][::-1].replace("=", "") + "=", headers, body),
        (secret, headers, body + b" "),
        (secret, headers | {"webhook-timestamp": earlier}, body),
        (secret, headers | {"webhook-id": "dlv_other"}, body),
    ):
        assert not is_genuine(other_secret, other_headers, other_body)
        with pytest.raises(WebhookVerificationError):
            verify(other_secret, other_headers, other_body)
    several = headers | {"webhook-signature": f"v1a,AAAA v1,AAAA {headers['webhook-signature']}"}
    assert is_genuine(secret, several, body)
    assert is_old_signature_genuine(secret, headers["Fedloom-Signature"], body)


def test_a_secret_of_release_0_1_goes_on_signing_both_headers(rig: FederationRig, receiver: Receiver) -> None:
    webhook, secret = create_webhook(rig, receiver), "flw_" + "0123456789abcdef" * 4
    with writing() as session:
        session.scalars(select(Webhook).where(Webhook.id == webhook["id"])).one().secret = secret
    rig.create()
    rig.settle()
    (message,) = receiver.messages
    standard = guide_function("convert")(secret)
    assert guide_function("is_genuine")(standard, message.headers, message.body)
    assert guide_function("verify")(standard, message.headers, message.body)["type"] == "federation.created"
    assert is_old_signature_genuine(secret, message.headers["Fedloom-Signature"], message.body)


def test_the_verifiers_in_the_guide_refuse_an_old_message() -> None:
    secret = new_secret()
    headers = signature_headers(secret, "dlv_1", utcnow() - timedelta(minutes=6), "{}")
    assert not guide_function("is_genuine")(secret, headers, b"{}")
    with pytest.raises(WebhookVerificationError, match="too old"):
        guide_function("verify")(secret, headers, b"{}")


def test_a_repeated_message_has_the_same_id(rig: FederationRig, receiver: Receiver) -> None:
    create_webhook(rig, receiver)
    receiver.answers = [500]
    rig.create()
    rig.settle()
    first, second = receiver.messages
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
