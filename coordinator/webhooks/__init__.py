"""Webhooks: notification of organizations about events, and the state of each delivery."""
