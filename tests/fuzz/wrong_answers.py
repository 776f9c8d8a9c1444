"""Answers of a hostile coordinator to the calls of an agent, each given once."""

from dataclasses import replace

from hypothesis import strategies as st

from tests.fuzz.leases import answers
from tests.worker_agent.faults import Fault

ELSEWHERE = "http://elsewhere.invalid"
"""Where no agent goes, whoever sends it there; stands for the address of a server of the fuzzer's."""
MODEL_OF = {
    "POST /v1/workers/me/heartbeat": "HeartbeatResponse",
    "POST /v1/jobs/lease": "Lease",
    "POST /v1/jobs/[^/]*/renew": "RenewResponse",
    "POST /v1/jobs/[^/]*/(submit|fail|decline)": "JobResponse",
    "GET /v1/jobs/.*": "JobResponse",
    "POST /v1/artifacts/uploads": "UploadResponse",
    "(GET|POST) /v1/artifacts/uploads/.*": "UploadResponse",
    "PUT /v1/artifacts/.*": "Problem",
    "GET /v1/artifacts/sha256.*": "Problem",
}
"""A call, as a pattern -> what it is answered with."""
STATUSES = (200, 200, 200, 201, 204, 206, 301, 307, 400, 401, 403, 404, 409, 413, 422, 429, 500, 502, 503, 504)
CODES = ("lease_lost", "round_closed", "already_submitted", "token_expired", "digest_mismatch", "\u202e", "x" * 999)
"""Of refusals. An agent that is told it was doubled ends, as it should."""
HEADERS = {
    "Content-Encoding": ("gzip", "br", "identity"),
    "Content-Range": ("bytes 0-1/2", "bytes */9", "x"),
    "Content-Type": ("application/json", "application/problem+json", "text/html", "\xff"),
    "Date": (
        "Mon, 01 Jan 0001 00:00:00 -0000",
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "x",
    ),
    "Location": (f"{ELSEWHERE}/", "//", "http://[::1", "/v1/workers/me", "file:///etc/passwd"),
    "Retry-After": ("0", "0.5", "nan", "-1", "x"),
    "Set-Cookie": ("a=b",),
}


@st.composite
def wrong_answers(draw: st.DrawFn) -> tuple[str, Fault]:
    """A call, and what comes of it once."""
    call = draw(st.sampled_from(sorted(MODEL_OF)))
    names = draw(st.lists(st.sampled_from(sorted(HEADERS)), max_size=2, unique=True))
    headers = {name: draw(st.sampled_from(HEADERS[name])) for name in names}
    status = draw(st.sampled_from(STATUSES))
    match draw(st.sampled_from(["content", "content", "problem", "cut", "lost", "page"])):
        case "content":
            content = draw(answers(MODEL_OF[call]))
            return call, Fault(status, {"Content-Type": "application/json", **headers}, content=content)
        case "problem":
            body = {"code": draw(st.sampled_from(CODES)), "detail": draw(st.text(max_size=60))}
            return call, Fault(max(status, 400), headers, body)
        case "cut":
            return call, Fault(cut_after_bytes=draw(st.integers(0, 30)))
        case "lost":
            return call, Fault(lose_answer=True)
    return call, Fault(max(status, 400), headers, page=True)


def pointed(fault: Fault, elsewhere: str) -> Fault:
    """The fault with this address in the place of ELSEWHERE."""
    headers = {name: value.replace(ELSEWHERE, elsewhere) for name, value in fault.headers.items()}
    content = None if fault.content is None else fault.content.replace(ELSEWHERE.encode(), elsewhere.encode())
    return replace(fault, headers=headers, content=content)
