"""Speed and learning, measured against the alternative in the same run: `python -m benchmarks.NAME`."""
