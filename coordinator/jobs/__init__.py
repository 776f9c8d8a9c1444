"""Jobs of clients: offered, leased, submitted and judged."""
