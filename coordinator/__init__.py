"""The coordinator service: it manages federations, hands out jobs and closes rounds. It knows algorithms by name only."""
