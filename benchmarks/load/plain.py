"""The least that a web process can do with bytes: writes a body to a file and syncs it, and sends a file.

A process of its own: `python -m benchmarks.load.plain '{"folder": ..., "port": ...}'`.
"""

import json
import os
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

FILE = "/bytes"


def app(folder: Path) -> Starlette:
    """PUT and GET of one file."""
    path = folder / "bytes"

    async def put(request: Request) -> Response:
        with path.open("wb", buffering=0) as file:
            async for part in request.stream():
                file.write(part)
            os.fsync(file.fileno())
        return Response(status_code=204)

    async def get(request: Request) -> Response:
        return FileResponse(path)

    return Starlette(routes=[Route(FILE, put, methods=["PUT"]), Route(FILE, get, methods=["GET"])])


def main() -> None:
    """Serves until it is ended."""
    parameters = json.loads(sys.argv[1])
    uvicorn.run(app(Path(parameters["folder"])), host="127.0.0.1", port=parameters["port"], log_level="warning")


if __name__ == "__main__":
    main()
