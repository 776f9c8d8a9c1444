"""HTTP endpoints of artifacts. Bytes are streamed outside any database session."""

import re
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from coordinator.artifacts import service
from coordinator.artifacts.store import chunks, objects, presigned
from coordinator.auth.principals import AnyPrincipal, Principal
from coordinator.db.sessions import ReadSession, WriteSession, reading, utcnow
from coordinator.errors import RangeNotSatisfiable, Unavailable, Unprocessable
from coordinator.web.body_limits import ChunkIndex, HeaderText, PathId, TagsText
from coordinator.web.etags import matches_etag
from coordinator.web.problem_details import LOCATION_HEADER, problem_responses
from coordinator.web.routes import Route
from federated.protocol import DIGEST_PATTERN, UploadRequest, UploadResponse

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"], route_class=Route)

_RANGE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})")


@router.post(
    "/uploads", status_code=201, operation_id="announce_upload", responses=LOCATION_HEADER | problem_responses(403)
)
def announce_upload(
    request: UploadRequest, principal: AnyPrincipal, session: WriteSession, response: Response
) -> UploadResponse:
    """Announce an upload, or resume an unfinished one of the same digest."""
    upload = service.announce(session, principal, request, utcnow())
    response.headers["Location"] = f"{router.prefix}/uploads/{upload.upload_id}"
    return upload


@router.get("/uploads/{upload_id}", operation_id="show_upload", responses=problem_responses(404))
def show_upload(upload_id: PathId, principal: AnyPrincipal, session: ReadSession) -> UploadResponse:
    """Show an upload and the chunks that are stored."""
    return service.show_upload(session, principal, upload_id)


@router.put(
    "/uploads/{upload_id}/chunks/{index}",
    status_code=204,
    operation_id="put_chunk",
    responses=problem_responses(403, 404, 409),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_chunk(upload_id: PathId, index: ChunkIndex, principal: AnyPrincipal, request: Request) -> Response:
    """Store one chunk; the body holds its bytes. All chunks but the last have `chunk_bytes` bytes."""
    place = await run_in_threadpool(_place_of, principal, upload_id, index)
    try:
        await chunks.put(upload_id, index, place.offset, request.stream(), place.size_bytes)
    except chunks.WrongBytes as error:
        raise Unprocessable("chunk_size_wrong", f"{error}.") from None
    except Unavailable as error:
        await run_in_threadpool(service.report_upload_problem, upload_id, error)
        raise
    if place.has_problem:
        await run_in_threadpool(service.clear_upload_problem, upload_id)
    return Response(status_code=204)


def _place_of(principal: Principal, upload_id: str, index: int) -> service.ChunkPlace:
    with reading() as session:
        return service.place_of(session, principal, upload_id, index)


@router.post(
    "/uploads/{upload_id}/complete",
    operation_id="complete_upload",
    responses={202: {"model": UploadResponse, "description": "Being assembled"}, **problem_responses(403, 404, 409)},
)
def complete_upload(upload_id: PathId, principal: AnyPrincipal, response: Response) -> UploadResponse:
    """Complete an upload. Several chunks are assembled in the background: poll the upload."""
    upload = service.complete(principal, upload_id)
    if upload.state == "assembling":
        response.status_code = 202
        response.headers["Location"] = f"{router.prefix}/uploads/{upload_id}"
    return upload


@router.get(
    "/{digest}",
    operation_id="download_artifact",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "All bytes"},
        206: {"content": {"application/octet-stream": {}}, "description": "The bytes of the range"},
        304: {"description": "The caller has it already"},
        307: {
            "description": "For a worker without `Fedloom-Transfer`: download from the store at `Location`, without "
            "a token"
        },
        **problem_responses(404, 416),
    },
)
async def download_artifact(
    digest: Annotated[str, Path(pattern=DIGEST_PATTERN)],
    principal: AnyPrincipal,
    range: HeaderText = None,  # noqa: A002 - the header's name
    if_range: HeaderText = None,
    if_none_match: TagsText = None,
    fedloom_transfer: Annotated[
        Literal["through-coordinator"] | None, Header(description="sent by a worker that may not contact the store")
    ] = None,
) -> Response:
    """Download an artifact or a range of it. Needs the right to read it; knowing the digest is not enough."""
    size_bytes = await run_in_threadpool(_readable_size, principal, digest)
    url = presigned.download_url(digest) if principal.kind == "worker" and fedloom_transfer is None else None
    if url is not None:
        return Response(status_code=307, headers={"Location": url, "Cache-Control": "no-store"})
    return stream(digest, size_bytes, range, if_range, if_none_match)


def stream(
    digest: str,
    size_bytes: int,
    range: str | None,  # noqa: A002 - the header's name
    if_range: str | None,
    if_none_match: str | None,
) -> Response:
    """Streams an artifact that the caller may read, or the range that the headers request."""
    etag = f'"{digest}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, max-age=31536000, immutable"}
    if matches_etag(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    byte_range = _parse_range(range, size_bytes) if if_range in (None, etag) else None
    start, end = byte_range or (0, size_bytes)
    headers["Content-Length"] = str(end - start)
    if byte_range is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size_bytes}"
    status = 200 if byte_range is None else 206
    return StreamingResponse(_bytes(digest, start, end), status, headers, "application/octet-stream")


def _readable_size(principal: Principal, digest: str) -> int:
    with reading() as session:
        size_bytes = service.readable(session, principal, digest, utcnow()).size_bytes
    if objects.size_of(digest) != size_bytes:  # other damage is detected by the reader's digest check
        raise service.report_damage(digest)
    return size_bytes


async def _bytes(digest: str, start: int, end: int) -> AsyncIterator[bytes]:
    async for part in objects.read(digest, start, end):
        yield bytes(part)


def _parse_range(text: str | None, size_bytes: int) -> tuple[int, int] | None:
    """(start, end) of one range, end exclusive (RFC 9110). None: the whole artifact. Raises RangeNotSatisfiable."""
    match = _RANGE.fullmatch(text.strip()) if text else None
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first:
        start, end = int(first), min(int(last) + 1 if last else size_bytes, size_bytes)
    else:
        start, end = max(size_bytes - int(last), 0), size_bytes
    if last and first and int(last) < int(first):
        return None
    if start >= end:
        raise RangeNotSatisfiable("range_not_satisfiable", f"The artifact has {size_bytes} bytes.")
    return start, end
