"""The process at a participating organization. It fetches jobs over HTTPS, trains locally and uploads updates."""
