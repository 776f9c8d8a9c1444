"""Entity tags and conditional requests (RFC 9110).

A tag is `"<version>-<digest>"`: the version of the row, if its endpoint sets one, and the digest of the response
body. A poll compares the whole tag. A change compares the version alone, since it overwrites the row. A countdown
that advanced or a worker that fell silent is no reason to reject it.
"""

import hashlib
import json
import re
from typing import Annotated, Any

from fastapi import Header, Response

from coordinator.errors import PreconditionFailed, PreconditionRequired

ANY = "*"
_DIGEST_CHARACTERS = 32
_ONE_TAG = re.compile(r'"(?P<version>[^",-]+)(-[^",]*)?"')

IfMatch = Annotated[
    str | None, Header(alias="If-Match", max_length=1024, description="`ETag` of the caller's last response; or `*`")
]


def set_version(response: Response, version: object) -> None:
    """Sets the version of the row that the response shows."""
    response.headers["ETag"] = f'"{version}"'


def version_of(*facts: Any) -> str:
    """A version for a row without a version counter: a digest of everything that can change in it."""
    return _digest(json.dumps(facts, sort_keys=True, default=str).encode())


def etag_of(body: bytes, version: str | None) -> str:
    """The strong entity tag of a response. `version`: the header value that `set_version` wrote."""
    prefix = "" if version is None else version.strip('"') + "-"
    return f'"{prefix}{_digest(body)}"'


def matches_etag(if_none_match: str | None, etag: str) -> bool:
    """Whether `If-None-Match` contains `etag`. Weak tags match too, since a compressing proxy weakens them."""
    return if_none_match is not None and any(tag.removeprefix("W/") in (ANY, etag) for tag in _tags(if_none_match))


def require_match(if_match: str | None, version: object) -> None:
    """Passes a change that is based on this version. Raises PreconditionRequired, PreconditionFailed."""
    if if_match is None:
        detail = (
            "Send `If-Match` with the `ETag` of the response that your change is based on, or `*` to change anyway."
        )
        raise PreconditionRequired("if_match_missing", detail)
    check_match(if_match, version)


def check_match(if_match: str | None, version: object) -> None:
    """Like `require_match`, for a change whose condition is optional."""
    if if_match is None:
        return
    versions = {tag.strip('"').partition("-")[0] for tag in _tags(if_match) if tag.startswith('"')}
    if ANY not in _tags(if_match) and str(version) not in versions:
        detail = "It has changed since the response with that `ETag`. Read it again before you change it."
        raise PreconditionFailed("changed_meanwhile", detail)


def require_agreement(digest: str | None, if_match: str | None, present: str) -> None:
    """Passes an agreement to the present definition: its digest in the body, or as the only tag of `If-Match`.

    `*` and a list of tags do not count. Raises PreconditionRequired, PreconditionFailed.
    """
    digests = {name for name in (digest, _only_version(if_match)) if name is not None}
    if not digests:
        detail = "Send the `definition_digest` of what you agree to, in the body or as `If-Match`."
        raise PreconditionRequired("if_match_missing", detail)
    if digests != {present}:
        detail = f"This agrees to a definition other than the present one, {present}. Read it again before you agree."
        raise PreconditionFailed("changed_meanwhile", detail)


def _only_version(if_match: str | None) -> str | None:
    """The version in a header with exactly one strong tag; "", which is no version, for any other header."""
    if if_match is None:
        return None
    match = _ONE_TAG.fullmatch(if_match)
    return "" if match is None else match["version"]


def _tags(header: str) -> list[str]:
    return [part.strip() for part in header.split(",")]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGEST_CHARACTERS]
