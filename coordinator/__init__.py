"""The coordinator service: manages federations, hands out jobs, closes rounds. It knows algorithms by name only."""
