"""The registered algorithms, listed and shown."""
