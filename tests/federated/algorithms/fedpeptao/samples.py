"""Settings of this algorithm for the suite over all algorithms. Each must be quick on a tiny model."""

_LOCAL = {"local_steps": 2, "batch_size": 4, "learning_rate": 0.05}

CONFIGS = [
    _LOCAL,
    _LOCAL | {"layer_share": 1.0, "server_lr": 0.0, "skip_last": True},
    _LOCAL | {"server_mode": "chained", "server_grad": "delta", "cv_update": "avg_grad"},
    _LOCAL | {"layer_count": "spectrum"},
    _LOCAL | {"layer_count": "eigengap", "warmup_rounds": 0},
    _LOCAL | {"moments": "persist", "other_layers": "masked"},
    _LOCAL | {"control_variates": False},
]
