"""Settings of this algorithm for the suite over all algorithms. Each must be quick on a tiny model."""

_LOCAL = {"local_steps": 2, "batch_size": 4, "learning_rate": 0.05, "preparation_steps": 2, "lanczos_steps": 6}

CONFIGS = [
    _LOCAL,
    _LOCAL
    | {"layer_count": "eigengap", "score_at": "after_warmup", "layer_noise": "gaussian", "upload_dtype": "bfloat16"},
    _LOCAL | {"layer_count": "fixed", "layer_noise_at": "layer", "order_by": "loss", "local_share": 0.0},
    _LOCAL | {"layer_count": "fixed", "layer_share": 1.0, "pacing": "none"},
]
