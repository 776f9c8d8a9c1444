"""Read-only API of the registered algorithms."""
