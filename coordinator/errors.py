"""Errors of the coordinator; each has its HTTP status and a problem document (RFC 9457).

CoordinatorError
├── BadRequest            400
├── Unauthenticated       401
├── Forbidden             403
├── NotFound              404
├── Conflict              409   a transition that the life cycle lacks, a lost race, a closed round
├── PreconditionFailed    412
├── TooLarge              413
├── RangeNotSatisfiable   416
├── Unprocessable         422   names fields by JSON pointer, or a tensor
├── PreconditionRequired  428
├── TooManyRequests       429
└── Unavailable           503
    └── ArtifactDamaged         stored bytes are lost or differ; they are rebuilt if possible
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, TypedDict

TYPE_PREFIX = "urn:fedloom:problem:"


class FieldError(TypedDict):
    """One invalid field of a request."""

    pointer: str
    detail: str


class CoordinatorError(Exception):
    """Base class. `code` is stable and machine-readable; `detail` says what is wrong and what to do."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    headers: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        tensor: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.errors = list(errors)
        self.tensor = tensor
        self.retry_after_seconds = retry_after_seconds

    def response_headers(self) -> dict[str, str]:
        """Headers of the response; `Retry-After` in whole seconds, as HTTP requires."""
        if self.retry_after_seconds is None:
            return self.headers
        return {**self.headers, "Retry-After": str(max(1, math.ceil(self.retry_after_seconds)))}

    def problem(self) -> dict[str, Any]:
        """The problem document (RFC 9457)."""
        document: dict[str, Any] = {
            "type": TYPE_PREFIX + self.code,
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.errors:
            document["errors"] = self.errors
        if self.tensor is not None:
            document["tensor"] = self.tensor
        return document


class BadRequest(CoordinatorError):
    status, title = 400, "Bad request"


class Unauthenticated(CoordinatorError):
    status, title, headers = 401, "Not authenticated", {"WWW-Authenticate": "Bearer"}


class Forbidden(CoordinatorError):
    status, title = 403, "Not allowed"


class NotFound(CoordinatorError):
    status, title = 404, "Not found"


class Conflict(CoordinatorError):
    status, title = 409, "Conflict with the present state"


class PreconditionFailed(CoordinatorError):
    status, title = 412, "Precondition failed"


class TooLarge(CoordinatorError):
    status, title = 413, "Too large"


class RangeNotSatisfiable(CoordinatorError):
    status, title = 416, "Range not satisfiable"


class Unprocessable(CoordinatorError):
    status, title = 422, "Not acceptable as it is"


class PreconditionRequired(CoordinatorError):
    status, title = 428, "Precondition required"


class TooManyRequests(CoordinatorError):
    status, title, headers = 429, "Too many requests", {"Retry-After": "1"}


class Unavailable(CoordinatorError):
    status, title, headers = 503, "Unavailable for now", {"Retry-After": "1"}


class ArtifactDamaged(Unavailable):
    def __init__(self, digest: str) -> None:
        detail = f"The stored bytes of {digest} are lost or damaged. They are rebuilt if possible."
        super().__init__("artifact_damaged", detail, retry_after_seconds=5.0)
        self.digest = digest


def out_of_service(part: str, error: Exception) -> Unavailable:
    """The error for a part ("store", "database", "disk") that does not answer or has no space left."""
    if any(text in str(error) for text in _NO_SPACE):
        return Unavailable(f"{part}_full", f"The coordinator's {part} has no space left. The operator must add some.")
    return Unavailable(f"{part}_unavailable", f"The coordinator's {part} does not answer at the moment. Try again.")


def cause_of(error: Exception) -> CoordinatorError:
    """The error to report for a failed step; an OSError is reported as the disk's."""
    return error if isinstance(error, CoordinatorError) else out_of_service("disk", error)


_NO_SPACE = ("No space left on device", "Disk quota exceeded", "File too large", "database or disk is full")
