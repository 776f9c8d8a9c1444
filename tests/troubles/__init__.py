"""Troubles that others had with data, models and networks, each tried here: right, or refused by name."""
