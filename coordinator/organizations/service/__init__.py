"""Organization service: organizations, API keys, enrollment tokens, audit log and ledger."""

from coordinator.organizations.service.keys import create_admin_key, create_key, list_keys, revoke_key
from coordinator.organizations.service.members import create, list_for, show, show_to
from coordinator.organizations.service.records import audit_of, audit_of_installation, keep_deeds, ledger_of
from coordinator.organizations.service.tokens import create_token, find_token, list_tokens, revoke_token, use_token

__all__ = [
    "audit_of",
    "audit_of_installation",
    "create",
    "create_admin_key",
    "create_key",
    "create_token",
    "find_token",
    "keep_deeds",
    "ledger_of",
    "list_for",
    "list_keys",
    "list_tokens",
    "revoke_key",
    "revoke_token",
    "show",
    "show_to",
    "use_token",
]
