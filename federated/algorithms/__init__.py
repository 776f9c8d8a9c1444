"""One folder per algorithm; `federated.registry` finds them."""
