"""HTTP beyond one request and its answer: waits that stay open, and how long a connection may take."""
