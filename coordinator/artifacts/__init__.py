"""Stored bytes: chunked upload, ranged download, who may read them and why they are kept."""
