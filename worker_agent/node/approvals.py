"""Requests of federations to this node, and approvals by its owner: small files in the data folder.

An approval covers a digest of a federation's owner, the data set, the client's settings and the whole work. Any other
content under the same federation id is another request. When the policy refuses a request, it is stored for the owner
to read: `asked/<federation>.<digest>.json`, the newest `MAX_REQUESTS`.
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from federated.atomic_files import write_file
from federated.protocol import Lease, Work
from federated.signed_statement import definition_digest
from federated.task import columns_read
from worker_agent.errors import ConfigurationError, NotUnderstood
from worker_agent.storage.file_names import file_name

MAX_REQUESTS = 100
OUTDATED_TEXT = (
    "approvals of an earlier version name a federation without the content of its request, and approve nothing"
)
MAX_REQUEST_BYTES = 1024 * 1024
_APPROVALS_FILE = "approved.json"
_REQUESTS_FOLDER = "asked"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PLAIN_TEXT = re.compile(r"(?!(?:none|true|false)$)[A-Za-z_](?:[A-Za-z0-9_./+-]| (?! |$))*")
_writing = threading.Lock()
_log = structlog.get_logger(__name__)


class Request(BaseModel):
    """A federation's request to this node, as far as the owner decides about it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    federation_id: str
    federation_name: str
    owner_name: str
    dataset: str
    settings: dict[str, Any]
    work: Work

    @property
    def digest(self) -> str:
        """The digest that approves this request and nothing else. Raises NotUnderstood."""
        try:
            # Validated again, so that a default of 16 equals 16.0 from a file. JSON would turn NaN into
            # null, so that an approval of one would be an approval of the other.
            return definition_digest(type(self).model_validate(self.model_dump()).model_dump())
        except ValueError as error:
            raise NotUnderstood(
                f"federation {self.federation_id!r} has a request without a digest: {error}"
            ) from None


@dataclass(frozen=True, slots=True)
class Approvals:
    """Content of `approved.json`. `legacy_entries`: entries of an earlier version, which approve nothing."""

    digests: frozenset[str]
    legacy_entries: tuple[str, ...]


def request_of(lease: Lease) -> Request:
    """The request of a lease, without the values of this one job.

    It also lacks the required digest of the base model's weights. A lease contains that once the first client was
    described, and a node whose weights have another digest declines the job, whatever it approved.
    """
    base_model = lease.work.base_model.model_copy(update={"weights_sha256": None})
    fields = {name: getattr(lease, name) for name in Request.model_fields}
    return Request(**fields | {"work": lease.work.model_copy(update={"base_model": base_model})})


def approval_digest(lease: Lease) -> str:
    """The digest that must be approved before work on this lease. Raises NotUnderstood."""
    return request_of(lease).digest


def approvals(folder: Path) -> Approvals:
    """All approvals of this node. Raises ConfigurationError for a damaged file."""
    entries = _read(folder / _APPROVALS_FILE)
    digests = frozenset(name for name in entries if _DIGEST.fullmatch(name))
    return Approvals(digests, tuple(sorted(entries.keys() - digests)))


def warn_of_outdated(folder: Path) -> None:
    """Log one line if there are approvals that no longer approve anything."""
    entries = len(approvals(folder).legacy_entries)
    if entries:
        _log.warning("approvals_outdated", entries=entries, reason=OUTDATED_TEXT)


def approve(folder: Path, request: Request) -> None:
    """Approve a request, from the next job of a running agent on. Entries that approve nothing are deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    digests = approvals(folder).digests
    entries = {name: entry for name, entry in _read(folder / _APPROVALS_FILE).items() if name in digests}
    at = datetime.now(UTC).isoformat(timespec="seconds")
    entries.setdefault(request.digest, {"federation": request.federation_id, "approved_at": at})
    write_file(folder / _APPROVALS_FILE, json.dumps(entries, indent=2, sort_keys=True).encode(), mode=0o600)
    (folder / _REQUESTS_FOLDER / _name(request)).unlink(missing_ok=True)


def keep(folder: Path, lease: Lease) -> None:
    """Store an unapproved request for the owner to read, and delete the oldest ones.

    Raises NotUnderstood for a request that is too large or has no digest, and OSError.
    """
    request = request_of(lease)
    content = request.model_dump_json(indent=1).encode()
    if len(content) > MAX_REQUEST_BYTES:
        raise NotUnderstood(f"the request of federation {request.federation_id!r} is too long: {len(content)} bytes")
    requests = folder / _REQUESTS_FOLDER
    with _writing:
        requests.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_file(requests / _name(request), content, mode=0o600)
        for file in _newest_first(requests)[MAX_REQUESTS:]:
            file.unlink(missing_ok=True)


def pending(folder: Path, federation_id: str) -> list[Request]:
    """Unapproved requests of this federation, newest first. Raises NotUnderstood if it is not a valid id."""
    prefix, approved_digests = f"{file_name(federation_id)}.", approvals(folder).digests
    files = [file for file in _newest_first(folder / _REQUESTS_FOLDER) if file.name.startswith(prefix)]
    requests = filter(None, map(_request_in, files))
    return [request for request in requests if request.digest not in approved_digests]


def in_words(request: Request) -> Iterator[tuple[str, str]]:
    """All content that an approval covers, as pairs of title and text. Texts from outside are quoted where needed."""
    work = request.work
    yield "federation", f"{_text(request.federation_name)} ({_text(request.federation_id)})"
    yield "owner", _text(request.owner_name) if request.owner_name else "unknown"
    yield "data set", _text(request.dataset)
    yield "columns", ", ".join(map(_text, columns_read(work.task)))
    yield "settings", _value(request.settings)
    for name, value in work.model_dump(mode="json", exclude={"base_model": {"weights_sha256"}}).items():
        yield name.replace("_", " "), _value(value)
    yield "digest", request.digest


def _value(value: object) -> str:
    """A JSON value in words, complete."""
    if isinstance(value, Mapping):
        return "; ".join(f"{_text(str(name))}: {_inner(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_inner, value)) or "none"
    if isinstance(value, str):
        return _text(value)
    return "none" if value is None else json.dumps(value)


def _inner(value: object) -> str:
    has_parts = isinstance(value, Mapping | list) and len(value) > 0
    return f"({_value(value)})" if has_parts else _value(value)


def _text(text: str) -> str:
    """A text from outside; quoted, with invisible characters escaped, unless it is plain words."""
    return text if _PLAIN_TEXT.fullmatch(text) else repr(text)


def _name(request: Request) -> str:
    return f"{file_name(request.federation_id)}.{request.digest.removeprefix('sha256:')}.json"


def _newest_first(folder: Path) -> list[Path]:
    files = list(folder.glob("*.json")) if folder.is_dir() else []
    return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name), reverse=True)


def _request_in(file: Path) -> Request | None:
    """The request in a file of `asked`; None, with a line in the log, if it does not match its name."""
    try:
        request = Request.model_validate_json(file.read_bytes())
        if file.name == _name(request):
            return request
    except (OSError, ValidationError, NotUnderstood) as error:
        _log.warning("request_damaged", file=file.name, reason=type(error).__name__)
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigurationError(f"{path} is damaged: {error}") from None
    if not isinstance(entries, dict):
        raise ConfigurationError(f"{path} is damaged: it is not an object")
    return entries
