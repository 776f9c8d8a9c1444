"""A process of nginx over a folder: PUT by its WebDAV module, GET with sendfile."""

import shutil
import subprocess
from pathlib import Path

_CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  sendfile on;
  client_max_body_size 0;
  client_body_temp_path {folder}/temporary;
  server {{
    listen 127.0.0.1:{port};
    root {folder}/files;
    {put}
  }}
}}
"""


def program() -> str | None:
    """Path of nginx, if it is installed."""
    return shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


def has_webdav(nginx: str) -> bool:
    """True if this nginx was built with the WebDAV module."""
    process = subprocess.run([nginx, "-V"], capture_output=True, text=True, check=False)
    return "http_dav_module" in process.stdout + process.stderr


def start(nginx: str, folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start nginx over `<folder>/files`."""
    (folder / "files").mkdir(parents=True)
    put = "location / { dav_methods PUT; }" if has_webdav(nginx) else ""
    configuration = folder / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(folder=folder, port=port, put=put), encoding="utf-8")
    with (folder / "log").open("ab") as log:
        return subprocess.Popen([nginx, "-p", str(folder), "-c", str(configuration)], stdout=log, stderr=log)
