"""Settings of this algorithm for the suite over all algorithms. Each must be quick on a tiny model."""

CONFIGS = [
    {"local_steps": 3, "batch_size": 4, "candidates": 128, "learning_rate": 0.01},
    {"local_steps": 3, "batch_size": 4, "candidates": 128, "variant": "pro", "schedule": "cosine"},
    {"local_steps": 3, "batch_size": 4, "candidates": 10, "directions": "rademacher", "weighting": "equal"},
    {"local_steps": 3, "batch_size": 4, "candidates": 10, "directions": "gaussian", "perturb": ["layers.*"]},
]
