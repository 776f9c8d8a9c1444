"""Artifacts: content-addressed bytes with chunked upload, ranged download, read permissions and reference holds."""
