"""A process of the demo that shows its own words only."""

import os
import warnings


def quiet() -> None:
    """Keep the model libraries' notices out of the demo's output; one thread, as every worker has."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    warnings.filterwarnings("ignore", module=r"(peft|transformers)\..*")
    import torch

    torch.set_num_threads(1)
