"""Training in the worker: model, data, and the one implementation of `federated.session`."""
