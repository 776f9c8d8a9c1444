"""Worker agents: enrollment, heartbeats, revocation."""
