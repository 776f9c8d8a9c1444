"""SIGKILL of any process at any named step of a round: `python -m tests.chaos`."""
