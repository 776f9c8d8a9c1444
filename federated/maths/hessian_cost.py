"""The cost of reading a share of layers from a Hessian, in passes over one batch. No torch: for configurations."""

LANCZOS_STEPS = 50
"""Products with the Hessian, where a method names no number of its own."""
PASSES_BESIDE_PRODUCTS = 4
"""The gradient before, the loss and its gradient after, and the product that tells how the curvature changes."""
