"""The process at a participating organisation: it pulls jobs over HTTPS, trains locally, uploads updates."""
