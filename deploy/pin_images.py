"""Digest pins of third-party images: `python -m deploy.pin_images REGISTRY` writes `images.env`.

The digests come from the registry. The images are those of compose.yaml and the Dockerfiles with a digest variable:
`NAME:TAG${VARIABLE}`. REGISTRY is the URL of the API of the registry, or of a mirror, for image names without a host.
"""

import re
import sys
from hashlib import sha256
from pathlib import Path

import httpx

FOLDER = Path(__file__).parent
FILE = FOLDER / "images.env"
SECONDS = 30.0
_IMAGE = re.compile(r"(?:image:|^FROM) *(\S+?):([\w.-]+)\$\{(\w+_DIGEST)(?::-)?\}", flags=re.MULTILINE)
_MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')


class Unpinnable(Exception):
    """The digest of an image cannot be determined. The text names the image and the reason."""


def images(folder: Path = FOLDER) -> dict[str, tuple[str, str]]:
    """Variable -> name and tag of its image in `folder`. Raises Unpinnable if a variable has two."""
    pinnable: dict[str, tuple[str, str]] = {}
    for path in (folder / "compose.yaml", *sorted(folder.glob("*.Dockerfile"))):
        for name, tag, variable in _IMAGE.findall(path.read_text("utf-8")):
            if pinnable.setdefault(variable, (name, tag)) != (name, tag):
                raise Unpinnable(f"{variable} is used for {':'.join(pinnable[variable])} and for {name}:{tag}")
    return pinnable


def digest(client: httpx.Client, name: str, tag: str) -> str:
    """The digest of the image, for all its platforms, as `sha256:…`. Raises Unpinnable."""
    path = f"/v2/{name if '/' in name else f'library/{name}'}/manifests/{tag}"
    response = client.get(path, headers={"Accept": _MANIFESTS})
    if response.status_code == httpx.codes.UNAUTHORIZED:
        token = _token(client, response.headers.get("WWW-Authenticate", ""))
        response = client.get(path, headers={"Accept": _MANIFESTS, "Authorization": f"Bearer {token}"})
    if response.status_code != httpx.codes.OK:
        raise Unpinnable(f"{name}:{tag}: the registry responds with {response.status_code}")
    content_digest = f"sha256:{sha256(response.content).hexdigest()}"
    header_digest = response.headers.get("Docker-Content-Digest", content_digest)
    if header_digest != content_digest:
        raise Unpinnable(f"{name}:{tag}: the registry states {header_digest}, but its manifest has {content_digest}")
    return content_digest


def _token(client: httpx.Client, challenge: str) -> str:
    """Fetch a token as described by a `WWW-Authenticate: Bearer …`."""
    parameters = dict(_PARAMETER.findall(challenge))
    realm = httpx.URL(parameters.pop("realm", ""))
    if not challenge.startswith("Bearer ") or realm.scheme not in ("https", client.base_url.scheme):
        raise Unpinnable(f"the registry requires another authentication: {challenge!r}")
    response = client.get(realm, params=parameters)
    response.raise_for_status()
    body = response.json()
    return str(body.get("token") or body["access_token"])


def write(digests: dict[str, str], file: Path = FILE) -> None:
    """Write the variables below the comment at the top of the file."""
    head = [line for line in file.read_text("utf-8").splitlines() if line.startswith("#")]
    lines = [f"{variable}=@{digests[variable]}" for variable in sorted(digests)]
    file.write_text("\n".join([*head, *lines]) + "\n", "utf-8")


def main(registry: str, folder: Path = FOLDER) -> None:
    """Request all digests, then write the file, which stays unchanged on an error."""
    with httpx.Client(base_url=registry, timeout=SECONDS) as client:
        digests = {variable: digest(client, *image) for variable, image in images(folder).items()}
    write(digests, folder / FILE.name)
    print("\n".join(f"{':'.join(image)}@{digests[variable]}" for variable, image in images(folder).items()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m deploy.pin_images REGISTRY")
    try:
        main(sys.argv[1])
    except (Unpinnable, httpx.HTTPError, httpx.InvalidURL) as error:
        sys.exit(f"error: {error}")
