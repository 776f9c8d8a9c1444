"""The coordinator's signature of every adapter: an OpenSSF model signature over the digests of its files.

`model_signing verify key` checks a folder against it, given the public key. So does `coordinator verify --key`. The
signing package takes two seconds to load: code that signs in a transaction calls `ready` before it.
"""

import tempfile
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from coordinator.errors import Unavailable
from coordinator.settings import get_settings
from federated.atomic_files import create_file

FILE = "model.sig"
_creation_lock = threading.Lock()


class KeyUnusable(Unavailable):
    """The private key cannot be used; the text says why."""

    def __init__(self, file: Path, reason: object) -> None:
        super().__init__("signing_key_unusable", f"The signing key {file.name} cannot be used: {reason}")


class SignatureInvalid(Exception):
    """A signature is not valid; the text says why."""


def ready() -> bool:
    """Whether adapters are signed here. Loads the key; an embedded installation creates a missing one.

    Raises KeyUnusable.
    """
    file = key_file()
    if file is None:
        return False
    _signer(file)
    return True


def key_file() -> Path | None:
    """Path of the private key, which need not exist yet; None if a distributed installation has no `signing_key`."""
    settings = get_settings()
    if settings.signing_key is not None or not settings.embedded:
        return settings.signing_key
    return settings.data_folder / "signing-key.pem"


def public_key() -> str | None:
    """The public key as PEM, or None. Raises KeyUnusable."""
    file = key_file()
    if file is None:
        return None
    return _key(file).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def sign(name: str, digests: Mapping[str, str]) -> str | None:
    """The signature over files given as name -> "sha256:…", to be stored beside them as FILE; None without a key."""
    file = key_file()
    if file is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        _signer(file).set_hashing_config(_DigestManifest(name, digests)).sign(folder, path)
        return path.read_text()


def check(signature: bytes, digests: Mapping[str, str], key: Path) -> None:
    """Checks the signature over files given as name -> "sha256:…" with a public key. Raises SignatureInvalid."""
    from model_signing import verifying

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        path.write_bytes(signature)
        try:
            verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
            verifier.set_hashing_config(_DigestManifest("", digests)).verify(folder, path)
        except (ValueError, TypeError, KeyError, UnsupportedAlgorithm) as error:
            raise SignatureInvalid(str(error) or type(error).__name__) from None


class _DigestManifest:
    """Hashing configuration that returns known digests, so that the package does not read the files."""

    def __init__(self, name: str, digests: Mapping[str, str]) -> None:
        self._name, self._digests = name, digests

    def hash(self, model_path: object, *, files_to_hash: object = None) -> Any:
        """The manifest of the files."""
        from model_signing.manifest import Manifest, SerializationType

        arguments = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [FILE]}
        kind = SerializationType.from_args(arguments)
        items = [
            kind.new_item(name, replace(_any_digest(), digest_value=bytes.fromhex(digest.removeprefix("sha256:"))))
            for name, digest in sorted(self._digests.items())
        ]
        return Manifest(self._name, items, kind)

    def add_ignored_paths(self, *, model_path: object, paths: Iterable[str]) -> None:
        """Does nothing: the digests contain no ignored file."""


@lru_cache(maxsize=1)
def _any_digest() -> Any:
    """A SHA-256 digest of the package's own type, which it exports only in the manifests of folders."""
    from model_signing import hashing

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "empty").touch()
        manifest = hashing.Config().use_file_serialization(hashing_algorithm="sha256").hash(folder)
    (descriptor,) = manifest.resource_descriptors()
    return descriptor.digest


def _signer(file: Path) -> Any:
    from model_signing import signing

    _key(file)
    return signing.Config().use_elliptic_key_signer(private_key=file)


@lru_cache(maxsize=1)
def _key(file: Path) -> ec.EllipticCurvePrivateKey:
    if get_settings().signing_key is None:
        _create_key(file)
    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except OSError as error:
        raise KeyUnusable(file, error.strerror) from None
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyUnusable(file, error) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyUnusable(file, "must be an elliptic-curve key, such as one on P-256")
    return key


def _create_key(file: Path) -> None:
    """Creates the key file unless it exists; its content is on disk before it gets its name."""
    with _creation_lock:
        if file.exists():
            return
        key = ec.generate_private_key(ec.SECP256R1())
        content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with suppress(FileExistsError):  # another process was faster
            create_file(file, content)
