"""The package shared by the coordinator and the worker agent: contract, algorithms, payloads and protocol."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fedloom")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
