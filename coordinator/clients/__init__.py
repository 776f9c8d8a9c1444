"""Who takes part: invitations of organisations, and the data sets they register."""
