"""Data folders that belong to one user of the machine: made so, and refused where others may read or write them."""

import os
import pwd
import shlex
import stat
from collections.abc import Iterable
from pathlib import Path

UMASK = 0o077
_OTHERS = 0o077


class NotPrivate(Exception):
    """Other users of this machine have a part in a file or folder; the text says what to run."""


def keep_private() -> None:
    """What this process and those it starts make from now on is readable and writable by their user alone."""
    os.umask(UMASK)


def own_folder(folder: Path, names: Iterable[str] = ()) -> None:
    """Make the folder unless it is there, and check it with what lies in it under these names. Raises NotPrivate."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private([folder, *(folder / name for name in names)])


def check_private(paths: Iterable[Path]) -> None:
    """Raises NotPrivate for the first of them that is there and is another user's, or open to others."""
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if status.st_uid != os.geteuid():
            owner, user = _name(status.st_uid), _name(os.geteuid())
            mend = f"run this as {owner}, or give it away: chown -R {user} {shlex.quote(str(path))}"
            raise NotPrivate(f"{path} belongs to {owner}, not to {user}: {mend}")
        mode = stat.S_IMODE(status.st_mode)
        if mode & _OTHERS:
            mend = f"chmod -R go-rwx {shlex.quote(str(path))}"
            raise NotPrivate(f"{path} is open to other users of this machine (mode {mode:04o}); run: {mend}")


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
