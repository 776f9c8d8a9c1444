"""API documentation in a browser: a page and a viewer whose files the coordinator serves itself.

The viewer is an unchanged swagger-ui in `vendor/`; `vendored.json` there lists its version, license and SHA-256.
"""

from functools import partial
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

PATH = "/docs"
POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""Content security policy of page and files: nothing from other hosts, and no inline script or style."""
FOLDER = Path(__file__).parent
_HEADERS = {"Content-Security-Policy": POLICY, "Cache-Control": "max-age=3600"}
_FILES = {
    PATH: ("index.html", "text/html"),
    f"{PATH}/viewer.js": ("viewer.js", "text/javascript"),
    f"{PATH}/swagger-ui-bundle.js": ("vendor/swagger-ui-bundle.js", "text/javascript"),
    f"{PATH}/swagger-ui.css": ("vendor/swagger-ui.css", "text/css"),
}


async def _file(name: str, media_type: str, request: Request) -> FileResponse:
    return FileResponse(FOLDER / name, media_type=media_type, headers=_HEADERS)


routes = [
    Route(path, partial(_file, name, media_type), include_in_schema=False)
    for path, (name, media_type) in _FILES.items()
]
