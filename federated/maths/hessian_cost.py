"""Cost of estimating a share of layers from a Hessian, in passes over one batch. Does not import torch."""

LANCZOS_STEPS = 50
"""Default number of products with the Hessian."""
PASSES_BESIDE_PRODUCTS = 4
"""The gradient before, the loss and its gradient after, and the product that measures the change of curvature."""
