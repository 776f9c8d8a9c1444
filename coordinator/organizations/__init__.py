"""Organizations, their API keys and enrollment tokens."""
