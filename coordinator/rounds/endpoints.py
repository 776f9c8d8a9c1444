"""HTTP endpoints of rounds and their adapters. Bytes are streamed outside of any session."""

import hashlib
import json
import zipfile
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from coordinator.artifacts import service as artifacts
from coordinator.artifacts.endpoints import stream
from coordinator.artifacts.store import objects
from coordinator.auth.principals import KeyPrincipal, Principal
from coordinator.clients import service as clients
from coordinator.db.sessions import ReadSession, reading, utcnow, writing
from coordinator.models import Federation, Round
from coordinator.provenance.document import FILE as PROVENANCE_FILE
from coordinator.provenance.signing import FILE as SIGNATURE_FILE
from coordinator.rounds import service
from coordinator.rounds.schemas import AdapterFile, RoundResponse
from coordinator.web.body_limits import MAX_TAGS, HeaderText, PathId, PathName, TagsText
from coordinator.web.etags import etag_of, matches_etag
from coordinator.web.pagination import MAX_INTEGER, Listing, Page, Paging
from coordinator.web.problem_details import problem_responses
from coordinator.web.routes import Route
from federated.protocol import JobKind, JobResponse, RoundKind

router = APIRouter(prefix="/v1", tags=["rounds"], route_class=Route)

_ZIPPED_AT = (1980, 1, 1, 0, 0, 0)
_Responses = dict[int | str, dict[str, Any]]
_ZIP: _Responses = {
    200: {"content": {"application/zip": {}}, "description": "All files of the adapter"},
    304: {"description": "The caller has it already"},
}
_FILE: _Responses = {
    200: {"content": {"application/octet-stream": {}, "application/json": {}}, "description": "The file"},
    206: {"content": {"application/octet-stream": {}}, "description": "The bytes of the range"},
    304: {"description": "The caller has it already"},
}
Number = Annotated[int, Path(ge=0, le=MAX_INTEGER)]
Attempt = Annotated[int | None, Query(ge=1, le=MAX_INTEGER)]


class RangeHeaders:
    """Headers of a request for a range of a file, or for a file only if it has changed."""

    def __init__(
        self,
        range: HeaderText = None,  # noqa: A002 - the header's name
        if_range: HeaderText = None,
        if_none_match: TagsText = None,
    ) -> None:
        self.range, self.if_range, self.if_none_match = range, if_range, if_none_match


Headers = Annotated[RangeHeaders, Depends()]
Tags = Annotated[
    str | None,
    Header(alias="If-None-Match", max_length=MAX_TAGS, description="`ETag` of the answer that the caller has."),
]


@router.get(
    "/federations/{federation_id}/rounds", operation_id="list_rounds", responses=problem_responses(400, 403, 404)
)
def list_rounds(
    federation_id: PathId, principal: KeyPrincipal, session: ReadSession, page: Paging
) -> Listing[RoundResponse]:
    """List a federation's rounds, all attempts, in the order in which they were opened."""
    federation = clients.visible_federation(session, principal, federation_id)
    rows = page.rows(session, service.rounds_of(federation.id), Round.sequence)
    items = service.to_responses(session, federation, rows.rows, utcnow())
    return Listing(items=items, next_cursor=rows.next_cursor)


@router.get(
    "/federations/{federation_id}/rounds/{number}", operation_id="show_round", responses=problem_responses(403, 404)
)
def show_round(
    federation_id: PathId,
    number: Number,
    principal: KeyPrincipal,
    session: ReadSession,
    kind: RoundKind = "train",
    attempt: Attempt = None,
) -> RoundResponse:
    """Show a round: its last attempt, unless one is named."""
    federation = clients.visible_federation(session, principal, federation_id)
    return service.to_response(
        session, federation, service.show(session, federation.id, kind, number, attempt), utcnow()
    )


@router.get(
    "/federations/{federation_id}/rounds/{number}/jobs",
    operation_id="list_jobs_of_round_number",
    responses=problem_responses(400, 403, 404),
)
def list_jobs_of_round_number(
    federation_id: PathId,
    number: Number,
    principal: KeyPrincipal,
    session: ReadSession,
    page: Paging,
    kind: RoundKind = "train",
    attempt: Attempt = None,
) -> Listing[JobResponse]:
    """List a round's jobs: all of them for the federation's owner, their own for others."""
    federation = clients.visible_federation(session, principal, federation_id)
    round_ = service.show(session, federation.id, kind, number, attempt)
    return _listing(page.of(service.jobs_of(session, principal, federation, round_, None), _job_id))


@router.get("/rounds/{round_id}/jobs", operation_id="list_round_jobs", responses=problem_responses(400, 403, 404))
def list_round_jobs(
    round_id: PathId, principal: KeyPrincipal, session: ReadSession, page: Paging, kind: JobKind | None = None
) -> Listing[JobResponse]:
    """List the jobs of one attempt at a round: all of them for the federation's owner, their own for others."""
    federation, round_ = service.visible(session, principal, round_id)
    return _listing(page.of(service.jobs_of(session, principal, federation, round_, kind), _job_id))


def _job_id(job: JobResponse) -> str:
    return job.id


def _listing(page: Page[JobResponse]) -> Listing[JobResponse]:
    return Listing(items=list(page.rows), next_cursor=page.next_cursor)


@router.get(
    "/federations/{federation_id}/adapter",
    operation_id="download_adapter",
    response_class=StreamingResponse,
    responses={**_ZIP, **problem_responses(403, 404)},
)
def download_adapter(federation_id: PathId, principal: KeyPrincipal, if_none_match: Tags = None) -> Response:
    """Download the newest adapter as a zip. A PEFT adapter opens in `peft.PeftModel.from_pretrained`."""
    return _archive(principal, federation_id, None, if_none_match)


@router.get(
    "/federations/{federation_id}/rounds/{number}/adapter",
    operation_id="download_round_adapter",
    response_class=StreamingResponse,
    responses={**_ZIP, **problem_responses(403, 404)},
)
def download_round_adapter(
    federation_id: PathId, number: Number, principal: KeyPrincipal, if_none_match: Tags = None
) -> Response:
    """Download the adapter of one aggregated round as a zip."""
    return _archive(principal, federation_id, number, if_none_match)


@router.get(
    "/federations/{federation_id}/adapter/{file}",
    operation_id="download_adapter_file",
    response_class=StreamingResponse,
    responses={**_FILE, **problem_responses(403, 404, 416)},
)
def download_adapter_file(
    federation_id: PathId, file: PathName, principal: KeyPrincipal, headers: Headers
) -> Response:
    """Download one file of the newest adapter, or a range of it."""
    return _one_file(principal, federation_id, None, file, headers)


@router.get(
    "/federations/{federation_id}/rounds/{number}/adapter/{file}",
    operation_id="download_round_adapter_file",
    response_class=StreamingResponse,
    responses={**_FILE, **problem_responses(403, 404, 416)},
)
def download_round_adapter_file(
    federation_id: PathId, number: Number, file: PathName, principal: KeyPrincipal, headers: Headers
) -> Response:
    """Download one file of an aggregated round's adapter, or a range of it."""
    return _one_file(principal, federation_id, number, file, headers)


def _adapter_of(principal: Principal, federation_id: str, number: int | None) -> tuple[Federation, Round, bytes]:
    """The federation, the round with the requested adapter, and its provenance."""
    with reading() as session:
        federation = clients.visible_federation(session, principal, federation_id)
        service.check_may_download(session, principal, federation)
        round_ = service.adapter_round(session, federation.id, number)
        return federation, round_, service.provenance(session, federation, round_)


def _record_download(principal: Principal, federation: Federation, round_: Round, file: str | None) -> None:
    """Records the download of one file or of all, before any byte is sent."""
    with writing() as session:
        service.note_download(session, principal, federation, round_, file)


def _one_file(
    principal: Principal, federation_id: str, number: int | None, name: str, headers: RangeHeaders
) -> Response:
    federation, round_, provenance = _adapter_of(principal, federation_id, number)
    if name == PROVENANCE_FILE:
        return Response(provenance, media_type="application/json")
    if name == SIGNATURE_FILE and round_.signature is not None:
        return Response(round_.signature, media_type="application/json")
    file = service.adapter_file(round_, name)
    response = stream(file.digest, file.size_bytes, headers.range, headers.if_range, headers.if_none_match)
    if isinstance(response, StreamingResponse):
        artifacts.check_whole(file.digest, file.size_bytes)
        _record_download(principal, federation, round_, name)
    return response


def _archive(principal: Principal, federation_id: str, number: int | None, if_none_match: str | None) -> Response:
    federation, round_, provenance = _adapter_of(principal, federation_id, number)
    files = service.adapter_files(round_)
    etag = etag_of(provenance + json.dumps({name: file.digest for name, file in files.items()}).encode(), None)
    if matches_etag(if_none_match, etag):
        return Response(status_code=304, headers={"ETag": etag})
    for file in files.values():
        artifacts.check_whole(file.digest, file.size_bytes)
    _record_download(principal, federation, round_, None)
    name = f"{federation_id}-round-{round_.number}.zip"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "ETag": etag}
    small = {PROVENANCE_FILE: provenance}
    if round_.signature is not None:
        small[SIGNATURE_FILE] = round_.signature.encode()
    return StreamingResponse(_zip(files, small), 200, headers, "application/zip")


async def _zip(files: Mapping[str, AdapterFile], small: Mapping[str, bytes]) -> AsyncIterator[bytes]:
    """The zip's bytes, in parts and uncompressed, since tensors do not shrink.

    Raises at the end of a file whose bytes do not match its digest. The part sent by then is no valid zip.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in small.items():
            archive.writestr(_entry(name), content)
        for name, file in files.items():
            sha256 = hashlib.sha256()
            with archive.open(_entry(name), "w", force_zip64=file.size_bytes >= zipfile.ZIP64_LIMIT) as entry:
                async for part in objects.read(file.digest, 0, file.size_bytes):
                    sha256.update(part)
                    entry.write(bytes(part))
                    yield sink.take()
            if file.digest != f"sha256:{sha256.hexdigest()}":
                raise await run_in_threadpool(artifacts.report_damage, file.digest)
    yield sink.take()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _ZIPPED_AT)
    entry.external_attr = 0o644 << 16
    return entry


class _Sink:
    """An unseekable file that is emptied after each write."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes, /) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Does nothing: there is no buffer."""

    def close(self) -> None:
        """Does nothing: the bytes can still be taken."""

    def take(self) -> bytes:
        data, self._parts = b"".join(self._parts), []
        return data
