"""Worker agents: enrolment, heartbeat, revocation."""
