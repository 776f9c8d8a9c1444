"""Digests of the images of others: `python -m deploy.pin_images REGISTRY` asks the registry and writes `images.env`.

The images are those of compose.yaml and the Dockerfiles that have a variable for it: `NAME:TAG${VARIABLE}`. REGISTRY
is the URL of the registry's API, or of a mirror of it, that has the images whose names begin with no host.
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
    """An image whose digest the registry does not tell; the text names it and says why."""


def images(folder: Path = FOLDER) -> dict[str, tuple[str, str]]:
    """Variable -> name and tag of the image, of every file in `folder`. Raises Unpinnable if one names two images."""
    pinnable: dict[str, tuple[str, str]] = {}
    for path in (folder / "compose.yaml", *sorted(folder.glob("*.Dockerfile"))):
        for name, tag, variable in _IMAGE.findall(path.read_text("utf-8")):
            if pinnable.setdefault(variable, (name, tag)) != (name, tag):
                raise Unpinnable(f"{variable} stands for {':'.join(pinnable[variable])} and for {name}:{tag}")
    return pinnable


def digest(client: httpx.Client, name: str, tag: str) -> str:
    """The digest of the image, for all its platforms, as `sha256:…`. Raises Unpinnable."""
    path = f"/v2/{name if '/' in name else f'library/{name}'}/manifests/{tag}"
    response = client.get(path, headers={"Accept": _MANIFESTS})
    if response.status_code == httpx.codes.UNAUTHORIZED:
        token = _token(client, response.headers.get("WWW-Authenticate", ""))
        response = client.get(path, headers={"Accept": _MANIFESTS, "Authorization": f"Bearer {token}"})
    if response.status_code != httpx.codes.OK:
        raise Unpinnable(f"{name}:{tag}: the registry answers {response.status_code}")
    computed_digest = f"sha256:{sha256(response.content).hexdigest()}"
    header_digest = response.headers.get("Docker-Content-Digest", computed_digest)
    if header_digest != computed_digest:
        raise Unpinnable(f"{name}:{tag}: the registry names {header_digest}, its manifest is {computed_digest}")
    return computed_digest


def _token(client: httpx.Client, challenge: str) -> str:
    """The token that a `WWW-Authenticate: Bearer …` says where to fetch."""
    parameters = dict(_PARAMETER.findall(challenge))
    realm = httpx.URL(parameters.pop("realm", ""))
    if not challenge.startswith("Bearer ") or realm.scheme not in ("https", client.base_url.scheme):
        raise Unpinnable(f"the registry asks for another way to sign in: {challenge!r}")
    response = client.get(realm, params=parameters)
    response.raise_for_status()
    body = response.json()
    return str(body.get("token") or body["access_token"])


def write(digests: dict[str, str], file: Path = FILE) -> None:
    """Writes the variables below the comment that the file begins with."""
    head = [line for line in file.read_text("utf-8").splitlines() if line.startswith("#")]
    lines = [f"{variable}=@{digests[variable]}" for variable in sorted(digests)]
    file.write_text("\n".join([*head, *lines]) + "\n", "utf-8")


def main(registry: str, folder: Path = FOLDER) -> None:
    """Asks for every image, then writes the file: on an error it stays as it is."""
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
