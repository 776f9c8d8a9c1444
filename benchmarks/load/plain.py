"""A minimal web server for bytes, which writes a body to a file with fsync, and sends a file.

It runs in a process of its own: `python -m benchmarks.load.plain '{"folder": ..., "port": ...}'`.
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
    """The application: PUT and GET of one file."""
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
    """Serve until the process is terminated."""
    parameters = json.loads(sys.argv[1])
    uvicorn.run(app(Path(parameters["folder"])), host="127.0.0.1", port=parameters["port"], log_level="warning")


if __name__ == "__main__":
    main()
