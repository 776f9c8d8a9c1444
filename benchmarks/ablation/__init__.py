"""Ablation of the control plane's mechanisms: `python -m benchmarks.ablation`."""
