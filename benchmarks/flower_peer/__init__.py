"""Flower on the task of `benchmarks.round_overhead`, on loopback and in an environment of its own."""
