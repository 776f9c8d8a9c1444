"""Transfer of artifacts through the coordinator against a plain web server: `python -m benchmarks.transfer`.

Upload: chunks, then the wait until they are one object of the announced digest, against uvicorn that writes the body
to a file and calls fsync. Download: the artifact, against Starlette's `FileResponse`. The figure is the smaller of
the two ratios of speed (plain seconds over the coordinator's, the median over repetitions). The servers are measured
in turns and share one core; the caller runs on another. nginx is measured too where it is installed, but without a
target because it does not sync.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.load import nginx, plain, processes
from benchmarks.load.cores import on_core, two_cores
from benchmarks.load.http import Caller
from benchmarks.report import print_report
from coordinator.addresses import free_port
from examples.quickstart.installation import Installation
from examples.quickstart.rest import Api
from federated.digests import file_digest

_TARGET_RATIO = 0.7
_TARGET_MEMORY_BYTES = 64 * 1024**2
_PIECE_BYTES = 16 * 1024**2
_POLLING_SECONDS = 0.02


class Source:
    """A file of random bytes. `renew` changes them, so that no server has stored them before."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path, self.size_bytes, self.digest = path, size_bytes, ""
        with path.open("wb") as file:
            for start in range(0, size_bytes, _PIECE_BYTES):
                file.write(os.urandom(min(_PIECE_BYTES, size_bytes - start)))

    def renew(self) -> None:
        """Change the first bytes and update the digest."""
        with self.path.open("r+b") as file:
            file.write(os.urandom(64))
        self.digest = file_digest(self.path)


class Coordinator:
    """The artifact endpoints, used as an organization's program uses them."""

    def __init__(self, installation: Installation) -> None:
        admin = Api.with_key(installation.url, installation.admin_key)
        _, (key,) = admin.new_organization("owner", "owner")
        self._caller = Caller(installation.url, {"Authorization": f"Bearer {key}"})
        self._admin = Caller(installation.url, {"Authorization": f"Bearer {installation.admin_key}"})
        self._folder = installation.folder / "coordinator"

    def web_pid(self) -> int:
        """Process id of the web process."""
        return int(json.loads((self._folder / "pids.json").read_text(encoding="utf-8"))["web"])

    def up(self, source: Source) -> None:
        """Send all chunks and wait until they are one artifact."""
        announcement = {"size_bytes": source.size_bytes, "digest": source.digest}
        upload = self._caller.request_json("POST", "/v1/artifacts/uploads", announcement)
        path, size = f"/v1/artifacts/uploads/{upload['upload_id']}", int(upload["chunk_bytes"])
        for index in range(upload["chunks"]):
            start = index * size
            self._caller.put(f"{path}/chunks/{index}", source.path, start, min(size, source.size_bytes - start))
        upload_state = self._caller.request_json("POST", f"{path}/complete")
        while upload_state["state"] == "assembling":
            time.sleep(_POLLING_SECONDS)
            upload_state = self._caller.request_json("GET", path)
        if upload_state["state"] != "complete":
            raise SystemExit(f"the upload is {upload_state['state']}: {upload_state['problem']}")

    def down(self, source: Source) -> int:
        """Receive the whole artifact. Returns its size in bytes."""
        return self._admin.get(f"/v1/artifacts/{source.digest}")

    def forget(self, source: Source) -> None:
        """Delete the bytes, so that repetitions do not fill the disk."""
        (self._folder / "artifacts" / "sha256" / source.digest.removeprefix("sha256:")).unlink()


class Plain:
    """A server with one file."""

    def __init__(self, url: str, path: str, file: Path) -> None:
        self._caller, self._path, self._file = Caller(url), path, file
        self._caller.wait("/")

    def up(self, source: Source) -> None:
        """Send the file as one body."""
        self._caller.put(self._path, source.path, 0, source.size_bytes)

    def down(self, source: Source) -> int:
        """Receive the file. Returns its size in bytes."""
        return self._caller.get(self._path)

    def forget(self, source: Source) -> None:
        """Delete the file."""
        self._file.unlink()


Server = Coordinator | Plain
Seconds = dict[str, dict[str, list[float]]]


def _servers(folder: Path, stack: ExitStack) -> dict[str, Server]:
    """Start all servers on the servers' core."""
    (folder / "service").mkdir()
    (folder / "plain").mkdir()
    servers: dict[str, Server] = {}
    with on_core(two_cores()[0]):
        servers["coordinator"] = Coordinator(stack.enter_context(Installation(folder / "service")))
        port = free_port()
        parameters = {"folder": str(folder / "plain"), "port": port}
        stack.enter_context(processes.terminating(processes.start("plain", parameters, folder, os.environ)))
        servers["plain"] = Plain(f"http://127.0.0.1:{port}", plain.FILE, folder / "plain" / "bytes")
        program = nginx.program()
        if program is not None and nginx.has_webdav(program):
            port = free_port()
            stack.enter_context(processes.terminating(nginx.start(program, folder / "nginx", port)))
            file = folder / "nginx" / "files" / "bytes"
            servers["nginx"] = Plain(f"http://127.0.0.1:{port}", plain.FILE, file)
    return servers


def _seconds(call: Callable[[], object]) -> float:
    os.sync()  # pending writes of other servers would count as this call's
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def transfer(servers: dict[str, Server], source: Source, repetitions: int) -> Seconds:
    """Seconds of each server for upload and download. The order of the servers alternates between repetitions."""
    seconds: Seconds = {name: {"up": [], "down": []} for name in servers}
    for repetition in range(repetitions):
        source.renew()
        order = list(servers) if repetition % 2 == 0 else list(reversed(servers))
        for name in order:
            seconds[name]["up"].append(_seconds(partial(servers[name].up, source)))
        for name in order:
            seconds[name]["down"].append(_seconds(partial(_download, servers[name], source)))
        for server in servers.values():
            server.forget(source)
        print({name: {way: round(times[-1], 2) for way, times in ways.items()} for name, ways in seconds.items()})
    return seconds


def _download(server: Server, source: Source) -> None:
    size_bytes = server.down(source)
    if size_bytes != source.size_bytes:
        raise SystemExit(f"received {size_bytes} of {source.size_bytes} bytes")


def ratio(reference: Sequence[float], ours: Sequence[float]) -> float:
    """Our speed relative to the reference: the median over the repetitions, each against its own neighbor."""
    return statistics.median(plain / own for plain, own in zip(reference, ours, strict=True))


def _compare(folder: Path, options: argparse.Namespace) -> None:
    source = Source(folder / "source", int(options.gigabytes * 1024**3))
    with ExitStack() as stack:
        servers = _servers(folder, stack)
        coordinator = servers["coordinator"]
        assert isinstance(coordinator, Coordinator)  # noqa: S101 - _servers puts one there
        source.renew()
        with on_core(two_cores()[1]), processes.Usage(coordinator.web_pid()) as web:
            seconds = transfer(servers, source, options.repetitions)
    ratios = {way: ratio(seconds["plain"][way], seconds["coordinator"][way]) for way in ("up", "down")}
    speeds = {
        name: {way: source.size_bytes / statistics.median(times) for way, times in ways.items()}
        for name, ways in seconds.items()
    }
    growth = web.growth_bytes()
    figure = min(ratios.values())
    details = {
        "bytes": source.size_bytes,
        "repetitions": options.repetitions,
        "ratios": ratios,
        "bytes_per_second": speeds,
        "memory_growth_bytes": growth,
        "left_out": [] if "nginx" in servers else ["nginx with its WebDAV module is not installed"],
    }
    holds = figure >= _TARGET_RATIO and growth <= _TARGET_MEMORY_BYTES
    print_report("transfer", figure, "x", target=_TARGET_RATIO, holds=holds, details=details)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the file in GiB")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, default=None, help="folder for all files and logs, which are kept; must not exist"
    )
    options = parser.parse_args()
    processes.leave_on_sigterm()
    if options.folder is not None:
        options.folder.mkdir(parents=True)
        _compare(options.folder.resolve(), options)
        return
    with tempfile.TemporaryDirectory(prefix="transfer-") as folder:
        _compare(Path(folder), options)


if __name__ == "__main__":
    main()
