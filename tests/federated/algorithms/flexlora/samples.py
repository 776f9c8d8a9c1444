"""Settings of this algorithm for the suite over all algorithms. Each must be quick on a tiny model."""

_LOCAL = {"local_steps": 2, "batch_size": 4, "learning_rate": 0.05}

CONFIGS = [
    _LOCAL,
    _LOCAL | {"aggregation": "product", "rank": "normal", "scaling": "lora"},
    _LOCAL | {"aggregation": "rank_aware", "rank": 1, "upload_dtype": "bfloat16", "export_rank": 1},
    _LOCAL | {"aggregation": "zero_pad", "rank": "uniform", "export_rank": 1},
    _LOCAL | {"aggregation": "stack", "rank": "full", "base_rank": 5},
]
