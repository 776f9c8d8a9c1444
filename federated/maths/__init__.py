"""Maths that more than one algorithm, or both halves of one, need. Nothing here does input or output."""
