"""A Flower app that trains what the federation of `benchmarks.round_overhead` trains."""
