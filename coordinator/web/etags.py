"""Entity tags, and the conditions under which a request is done or answered.

A tag is `"<version>-<digest>"`: the version of the row, where its endpoint tells one, and the digest of what is
shown. A poll compares the whole. A change compares the version alone: what it would overwrite is the row, and a
countdown that went on or a worker that fell silent is no reason to refuse it.
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
    str | None, Header(alias="If-Match", max_length=1024, description="`ETag` of what the caller saw; or `*`")
]


def set_version(response: Response, version: object) -> None:
    """Names the version of the row that the answer shows."""
    response.headers["ETag"] = f'"{version}"'


def version_of(*facts: Any) -> str:
    """A version for a row that counts none: a digest of what can change in it."""
    return _digest(json.dumps(facts, sort_keys=True, default=str).encode())


def etag_of(body: bytes, version: str | None) -> str:
    """The strong entity tag of an answer. `version`: as `set_version` wrote it."""
    prefix = "" if version is None else version.strip('"') + "-"
    return f'"{prefix}{_digest(body)}"'


def matches_etag(if_none_match: str | None, etag: str) -> bool:
    """Whether the caller has what `etag` names. Weak tags count: a proxy that compresses weakens them."""
    return if_none_match is not None and any(
        given.removeprefix("W/") in (ANY, etag) for given in _listed(if_none_match)
    )


def require_match(if_match: str | None, version: object) -> None:
    """Lets a change pass that its caller bases on this version. Raises PreconditionRequired, PreconditionFailed."""
    if if_match is None:
        detail = (
            "Send `If-Match` with the `ETag` of the answer that your change is based on, or `*` to change anyway."
        )
        raise PreconditionRequired("if_match_missing", detail)
    check_match(if_match, version)


def check_match(if_match: str | None, version: object) -> None:
    """As `require_match`, for a change that may come without a condition."""
    if if_match is None:
        return
    versions = {given.strip('"').partition("-")[0] for given in _listed(if_match) if given.startswith('"')}
    if ANY not in _listed(if_match) and str(version) not in versions:
        detail = "It has changed since the answer with that `ETag`. Read it again, and decide anew."
        raise PreconditionFailed("changed_meanwhile", detail)


def require_agreement(digest: str | None, if_match: str | None, present: str) -> None:
    """Lets somebody agree to what was seen, named by its digest: in the body, or as the only tag of `If-Match`.

    `*` and a list of tags name nothing that was seen. Raises PreconditionRequired, PreconditionFailed.
    """
    digests = {name for name in (digest, _only_version(if_match)) if name is not None}
    if not digests:
        detail = "Send the `definition_digest` of what you agree to, in the body or as `If-Match`."
        raise PreconditionRequired("if_match_missing", detail)
    if digests != {present}:
        detail = f"You agree to another definition than the present one, {present}. Read it again, and decide anew."
        raise PreconditionFailed("changed_meanwhile", detail)


def _only_version(if_match: str | None) -> str | None:
    """The version that a header with one strong tag names; of any other header a text that is no version."""
    if if_match is None:
        return None
    match = _ONE_TAG.fullmatch(if_match)
    return "" if match is None else match["version"]


def _listed(header: str) -> list[str]:
    return [part.strip() for part in header.split(",")]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGEST_CHARACTERS]
