"""Webhooks: where organizations are told of events, and what became of each message."""
