"""Flower on the task of `benchmarks.round_overhead`, on loopback and in a virtual environment of its own."""
