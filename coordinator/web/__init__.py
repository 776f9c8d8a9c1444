"""HTTP layer: routes, errors, entity tags, idempotency, limits, and waits that stay open."""
