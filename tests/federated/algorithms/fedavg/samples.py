"""Settings of this algorithm for the suite over all algorithms. Each must be quick on a tiny model."""

CONFIGS = [
    {"local_steps": 2, "batch_size": 4, "learning_rate": 0.05},
    {"local_steps": 2, "batch_size": 4, "server_optimizer": "adam", "server_learning_rate": 0.1, "proximal_mu": 0.1},
    {"local_steps": 2, "batch_size": 4, "freeze_a": True, "upload_dtype": "bfloat16"},
]
