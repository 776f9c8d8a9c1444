"""What clients are asked to do: offered, leased, submitted, judged."""
