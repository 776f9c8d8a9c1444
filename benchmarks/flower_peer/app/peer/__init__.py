"""A Flower app with the training task of `benchmarks.round_overhead`."""
