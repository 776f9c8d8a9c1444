"""Setup of the demo's processes: no notices of the model libraries, one torch thread."""

import os
import warnings


def quiet() -> None:
    """Silence the notices of the model libraries, and set one torch thread as in every worker."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    warnings.filterwarnings("ignore", module=r"(peft|transformers)\..*")
    import torch

    torch.set_num_threads(1)
