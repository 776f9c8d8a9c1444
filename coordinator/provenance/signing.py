"""The coordinator's signature under every adapter: an OpenSSF model signature over the digests of its files.

`model_signing verify key` holds a folder against it, given the public key; so does `coordinator verify --key`.
The package that signs takes two seconds to load: whoever signs in a transaction calls `ready` before.
"""

import os
import tempfile
import threading
from collections.abc import Iterable, Mapping
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

FILE = "model.sig"
_making = threading.Lock()


class KeyUnusable(Unavailable):
    """The private key cannot be used; the text says why."""

    def __init__(self, file: Path, reason: object) -> None:
        super().__init__("signing_key_unusable", f"The key {file.name} with which adapters are signed: {reason}")


class SignatureInvalid(Exception):
    """A signature does not hold; the text says why."""


def ready() -> bool:
    """Whether adapters are signed here: with the key of the settings, or on a machine of its own with one made now.

    Raises KeyUnusable.
    """
    file = key_file()
    if file is None:
        return False
    _signer(file)
    return True


def key_file() -> Path | None:
    """Where the private key lies, or is going to; None: an installation of several machines that was given none."""
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
    """The signature over files given as name -> "sha256:…", to be kept beside them as FILE; None without a key."""
    file = key_file()
    if file is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / FILE
        _signer(file).set_hashing_config(_Known(name, digests)).sign(folder, place)
        return place.read_text()


def check(signature: bytes, digests: Mapping[str, str], key: Path) -> None:
    """Holds files given as name -> "sha256:…" against a signature and a public key. Raises SignatureInvalid."""
    from model_signing import verifying

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / FILE
        place.write_bytes(signature)
        try:
            held = verifying.Config().use_elliptic_key_verifier(public_key=key)
            held.set_hashing_config(_Known("", digests)).verify(folder, place)
        except (ValueError, TypeError, KeyError, UnsupportedAlgorithm) as error:
            raise SignatureInvalid(str(error) or type(error).__name__) from None


class _Known:
    """Stands where the package would read and hash the files."""

    def __init__(self, name: str, digests: Mapping[str, str]) -> None:
        self._name, self._digests = name, digests

    def hash(self, model_path: object, *, files_to_hash: object = None) -> Any:
        """The manifest of the files."""
        from model_signing._hashing.hashing import Digest
        from model_signing.manifest import Manifest, SerializationType

        told = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [FILE]}
        kind = SerializationType.from_args(told)
        items = [
            kind.new_item(name, Digest("sha256", bytes.fromhex(digest.removeprefix("sha256:"))))
            for name, digest in sorted(self._digests.items())
        ]
        return Manifest(self._name, items, kind)

    def add_ignored_paths(self, *, model_path: object, paths: Iterable[str]) -> None:
        """Nothing: only files that count are named."""


def _signer(file: Path) -> Any:
    from model_signing import signing

    _key(file)
    return signing.Config().use_elliptic_key_signer(private_key=file)


@lru_cache(maxsize=1)
def _key(file: Path) -> ec.EllipticCurvePrivateKey:
    if get_settings().signing_key is None:
        _make(file)
    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except OSError as error:
        raise KeyUnusable(file, error.strerror) from None
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyUnusable(file, error) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyUnusable(file, "must be an elliptic-curve key, such as one on P-256")
    return key


def _make(file: Path) -> None:
    """Puts a new key there unless one is; whole and on disk before it has its name."""
    with _making:
        if file.exists():
            return
        key = ec.generate_private_key(ec.SECP256R1())
        content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".signing-key") as made:
            made.write(content)
            made.flush()
            os.fsync(made.fileno())
            try:
                os.link(made.name, file)
            except FileExistsError:
                return  # another process was faster
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
