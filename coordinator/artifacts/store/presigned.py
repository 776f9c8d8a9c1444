"""Presigned URLs of the store, for transfers that bypass the web process.

Anyone who has a URL may use it until it expires.
"""

from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache

import obstore
from obstore.store import S3Store

from coordinator.artifacts.store import chunks, objects
from coordinator.settings import get_settings


def download_url(digest: str) -> str | None:
    """URL for reading the object; None without `presigned_endpoint`."""
    signer = _signer()
    return None if signer is None else obstore.sign(signer, "GET", objects.object_key(digest), _lifetime())


def chunk_urls(upload_id: str, indices: Sequence[int]) -> dict[int, str]:
    """Index -> URL for writing that chunk; empty without `presigned_endpoint`."""
    signer = _signer()
    if signer is None or not indices:
        return {}
    keys = [chunks.key(upload_id, index) for index in indices]
    return dict(zip(indices, obstore.sign(signer, "PUT", keys, _lifetime()), strict=True))


def _lifetime() -> timedelta:
    return timedelta(seconds=get_settings().presigned_seconds)


def _signer() -> S3Store | None:
    settings = get_settings()
    return None if settings.presigned_endpoint is None else _open_store(settings.store, settings.presigned_endpoint)


@lru_cache(maxsize=1)
def _open_store(url: str, endpoint: str) -> S3Store:
    """A store that only signs URLs, with the store's credentials and the host under which agents reach it."""
    return S3Store.from_url(url, config={"endpoint": endpoint}, client_options={"allow_http": True})
