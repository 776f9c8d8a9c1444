"""The service that keeps federations, offers jobs and closes rounds. It knows algorithms by name only."""
