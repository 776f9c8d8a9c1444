"""What the coordinator and a worker agent must agree on; it imports neither of them."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fedloom")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
